//! The channels of a tenant: which there are, how much memory they may take together, and the one way to publish.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use config::{ChannelRule, TenantLimits};
use wire::Frame;

use crate::{
    account::{Account, LIMIT, Part, Reserve},
    channel::{
        Channel, ChannelState, Chunk, MAIN, Publication, Refused, check_name, chunk_limit, ledger::LogLedger,
        publication::check, snapshot::Snapshot,
    },
    demand::Demand,
    metrics::TenantMetrics,
    sync::Mutex,
};

/// Shortest time between two searches for channels that nobody reads. Each search looks at all channels.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A channel, and the publications that it gets at once.
type Burst = (Arc<Channel>, Vec<Publication>);

/// The channels of one tenant.
pub struct Channels {
    rules: ArcSwap<Rules>,
    metrics: Arc<TenantMetrics>,
    /// Notified when a channel gets its first subscriber, or loses its last.
    pub demand: Arc<Demand>,
    open: Mutex<HashMap<Arc<str>, Arc<Channel>>>,
    /// Has the bytes of all logs and snapshots.
    account: Arc<Account>,
    /// Most channels that exist at once, published to or subscribed to.
    max_channels: AtomicUsize,
    /// When channels that nobody reads were last dropped.
    last_sweep: Mutex<Option<Instant>>,
}

/// What the manifest says of channels.
struct Rules {
    rules: Vec<ChannelRule>,
    compress_above: usize,
}

impl Channels {
    /// `compress_above`: payloads from this many bytes on are compressed, for clients that accept compression; `None`:
    /// none are. `account`: what limits the bytes of all logs.
    pub fn new(
        rules: Vec<ChannelRule>,
        limits: &TenantLimits,
        compress_above: Option<usize>,
        metrics: Arc<TenantMetrics>,
        account: Arc<Account>,
    ) -> Self {
        Self {
            rules: ArcSwap::from_pointee(Rules::new(rules, compress_above)),
            metrics,
            demand: Arc::default(),
            open: Mutex::default(),
            account,
            max_channels: AtomicUsize::new(limits.channels),
            last_sweep: Mutex::default(),
        }
    }

    /// Takes the rules and limits of another manifest, also for the channels that exist. Clients of a channel that is
    /// no longer listed keep following it.
    pub fn reconfigure(&self, rules: Vec<ChannelRule>, limits: &TenantLimits, compress_above: Option<usize>) {
        let open = self.open.lock();
        let rules = Rules::new(rules, compress_above);
        self.max_channels.store(limits.channels, Ordering::Relaxed);
        for channel in open.values() {
            channel.reconfigure(rules.rule_for(&channel.name).cloned().unwrap_or_default(), rules.compress_above);
        }
        self.rules.store(Arc::new(rules));
    }

    /// The channel that a client asks for. If there are rules, they list the channels, besides [`MAIN`]. Names that
    /// clients ask for take no more than half of the channels, so that components can always publish.
    ///
    /// Async for the day when the channel's home is another node. Today it never waits.
    #[allow(clippy::unused_async)]
    pub async fn follow(&self, name: &str) -> Result<Arc<Channel>, Refused> {
        self.check_allowed(name)?;
        let mut open = self.open.lock();
        let max_channels = self.max_channels();
        if open.len() >= max_channels / 2 && !open.contains_key(name) {
            self.sweep(&mut open);
            if open.len() >= max_channels / 2 {
                self.metrics.limited("channels", 1);
                return Err(Refused::Channels(max_channels));
            }
        }
        drop(open);
        self.open(name)
    }

    /// The channel that a request wants to read, if it exists. A missing one is made only if the manifest lists its
    /// full name: reading must not make others.
    #[allow(clippy::unused_async)]
    pub async fn find(&self, name: &str) -> Result<Option<Arc<Channel>>, Refused> {
        self.check_allowed(name)?;
        if name == MAIN || self.rules.load().rules.iter().any(|rule| rule.pattern == name) {
            return self.open(name).map(Some);
        }
        Ok(self.get(name))
    }

    fn check_allowed(&self, name: &str) -> Result<(), Refused> {
        check_name(name)?;
        let rules = self.rules.load();
        if !rules.rules.is_empty() && name != MAIN && rules.rule_for(name).is_none() {
            return Err(Refused::NotAllowed);
        }
        Ok(())
    }

    /// Appends publications to their channels' logs, in their order. This is the only way into a log. The publications
    /// of one channel are one burst. `upstream`: the upstream of the filter that made them, if a filter did.
    ///
    /// Returns how many were taken, and why each other one was not. Refusals are counted here. Async for the day when
    /// the log is on another node. Today it never waits.
    #[allow(clippy::unused_async)]
    pub async fn publish(&self, publications: Vec<Publication>, upstream: Option<&Arc<str>>) -> (usize, Vec<Refused>) {
        let mut bursts: HashMap<Arc<str>, Result<Burst, Refused>> = HashMap::new();
        let mut refused = Vec::new();
        for publication in publications {
            if let Err(why) = check(&publication) {
                refused.push(why);
                continue;
            }
            let open = |name: &Arc<str>| self.open(name).map(|channel| (channel, Vec::new()));
            match bursts.entry(Arc::clone(&publication.channel)).or_insert_with_key(open) {
                Ok((_, burst)) => burst.push(publication),
                Err(why) => refused.push(*why),
            }
        }
        let mut taken = 0;
        for (channel, burst) in bursts.into_values().flatten() {
            if let Err(limit) = self.make_room(&channel, &burst) {
                self.metrics.limited(limit, burst.len());
                refused.extend(burst.iter().map(|_| Refused::Bytes));
                continue;
            }
            let count = burst.len();
            let left_out = channel.append(burst, upstream);
            taken += count - left_out;
            refused.extend((0..left_out).map(|_| Refused::Keys));
        }
        self.metrics.publications.inc_by(taken as u64);
        for why in &refused {
            self.metrics.refused(why.reason(), 1);
        }
        (taken, refused)
    }

    /// Begins a new epoch in every channel that has publications of an upstream. Called when that upstream, or a part
    /// of what it sent, is lost.
    pub fn lost(&self, upstream: &Arc<str>) {
        for channel in self.all() {
            channel.lost(upstream);
        }
    }

    /// Begins a new epoch in a channel, if it exists and has publications in the present one. Called when a component
    /// knows that something is missing.
    #[allow(clippy::unused_async)]
    pub async fn gap(&self, channel: &str) {
        if let Some(channel) = self.get(channel) {
            channel.gap();
        }
    }

    /// Begins a new epoch in one channel, if it has publications of an upstream. Called when the filter changes what it
    /// subscribes to upstream for this channel.
    pub fn interrupted(&self, channel: &str, upstream: &Arc<str>) {
        if let Some(channel) = self.get(channel) {
            channel.lost(upstream);
        }
    }

    /// The channel with this name. Makes it if it does not exist yet.
    pub fn open(&self, name: &str) -> Result<Arc<Channel>, Refused> {
        check_name(name)?;
        let mut open = self.open.lock();
        if let Some(channel) = open.get(name) {
            return Ok(Arc::clone(channel));
        }
        let max_channels = self.max_channels();
        if open.len() >= max_channels && !self.sweep(&mut open) {
            self.metrics.limited("channels", 1);
            return Err(Refused::Channels(max_channels));
        }
        let rules = self.rules.load();
        let rule = rules.rule_for(name).cloned().unwrap_or_default();
        let name: Arc<str> = name.into();
        let channel = Arc::new(Channel {
            name: Arc::clone(&name),
            metrics: Arc::clone(&self.metrics),
            compress_above: AtomicUsize::new(rules.compress_above),
            subscribers: AtomicUsize::new(0),
            demand: Arc::clone(&self.demand),
            ledger: LogLedger::new(&self.account),
            state: Mutex::new(ChannelState::new(&rule)),
            rule: ArcSwap::from_pointee(rule),
        });
        open.insert(name, Arc::clone(&channel));
        Ok(channel)
    }

    /// The newest publication of a channel, if there is one.
    #[allow(clippy::unused_async)]
    pub async fn latest(&self, name: &str) -> Option<Frame> {
        self.get(name)?.latest()
    }

    /// How many clients follow a channel now.
    #[allow(clippy::unused_async)]
    pub async fn subscribers(&self, name: &str) -> usize {
        self.get(name).map_or(0, |channel| channel.subscribers())
    }

    /// The channel with this name, if it exists.
    fn get(&self, name: &str) -> Option<Arc<Channel>> {
        self.open.lock().get(name).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    fn max_channels(&self) -> usize {
        self.max_channels.load(Ordering::Relaxed)
    }

    /// Has the tenant's logs make room for a burst, if need be in the place of older chunks. `Err` names the limit that
    /// leaves no room.
    fn make_room(&self, channel: &Channel, burst: &[Publication]) -> Result<(), &'static str> {
        let keys: usize = burst.iter().map(Snapshot::cost).sum();
        let burst = Chunk::max_size(burst, chunk_limit(channel.log_limit())) + keys;
        let logs_fit = |own| self.account.bytes(Part::Logs) + burst <= self.account.max_logs() + own;
        let fits = |own| logs_fit(own) && self.account.excess(burst) <= own;
        if fits(0) {
            return Ok(());
        }
        self.sweep(&mut self.open.lock());
        if fits(channel.log_bytes()) || self.shrink_largest_logs(channel, fits) {
            return Ok(());
        }
        Err(if logs_fit(channel.log_bytes()) { LIMIT } else { "logs" })
    }

    /// Has the largest logs drop their oldest chunks until a burst fits. Returns whether it does.
    fn shrink_largest_logs(&self, channel: &Channel, fits: impl Fn(usize) -> bool) -> bool {
        let mut others = self.all();
        loop {
            let own = channel.log_bytes();
            if fits(own) {
                return true;
            }
            if !drop_from_largest(&mut others, own, false) {
                return false;
            }
        }
    }

    fn all(&self) -> Vec<Arc<Channel>> {
        self.open.lock().values().map(Arc::clone).collect()
    }

    /// Drops the channels that nobody reads, to make room for others. Does so once a second at most. Returns whether
    /// there is room now.
    fn sweep(&self, open: &mut HashMap<Arc<str>, Arc<Channel>>) -> bool {
        let mut last_sweep = self.last_sweep.lock();
        if last_sweep.is_some_and(|at| at.elapsed() < SWEEP_INTERVAL) {
            return false;
        }
        *last_sweep = Some(Instant::now());
        // A channel that is held elsewhere has readers, or a handshake or a publication uses it now.
        open.retain(|_, channel| Arc::strong_count(channel) > 1 || channel.is_kept());
        open.len() < self.max_channels() && self.account.logs_excess() == 0
    }
}

/// The logs let go when the tenant needs their memory elsewhere, and when formats that clients need make them too
/// large: the largest first, and in the end also the newest chunks.
impl Reserve for Channels {
    fn let_go(&self, bytes: usize) {
        self.sweep(&mut self.open.lock());
        let enough = self.account.bytes(Part::Logs).saturating_sub(bytes);
        let mut all = self.all();
        while self.account.bytes(Part::Logs) > enough && drop_from_largest(&mut all, 0, true) {}
    }
}

/// Has the largest log drop its oldest chunks, if it has more than `least` bytes. A channel that has nothing to drop is
/// left out from now on. `false`: no channel is left.
fn drop_from_largest(channels: &mut Vec<Arc<Channel>>, least: usize, all: bool) -> bool {
    let bytes = |channels: &[Arc<Channel>], nth: usize| channels.get(nth).map_or(0, |channel| channel.log_bytes());
    while let Some(largest) = (0..channels.len()).max_by_key(|nth| bytes(channels, *nth)) {
        if bytes(channels, largest) <= least {
            return false;
        }
        if channels.get(largest).is_some_and(|channel| channel.drop_oldest(all)) {
            return true;
        }
        channels.swap_remove(largest);
    }
    false
}

impl Rules {
    fn new(rules: Vec<ChannelRule>, compress_above: Option<usize>) -> Self {
        Self { rules, compress_above: compress_above.unwrap_or(usize::MAX) }
    }

    /// The rule for a channel: the rule with its full name, or else the one with the longest matching prefix.
    fn rule_for(&self, name: &str) -> Option<&ChannelRule> {
        let matching = self.rules.iter().filter_map(|rule| match rule.pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix).then_some((false, prefix.len(), rule)),
            None => (name == rule.pattern).then_some((true, 0, rule)),
        });
        matching.max_by_key(|(exact, prefix, _)| (*exact, *prefix)).map(|(_, _, rule)| rule)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use wire::{Frame, Kind};

    use super::*;
    use crate::{
        channel::{Format, Reader, Since},
        metrics::Metrics,
    };

    /// Most channels of the tenant.
    const MOST: usize = 1000;

    fn channels(rules: &[(&str, usize)], max_bytes: usize) -> Channels {
        let rule = |(pattern, log_bytes): &(&str, usize)| ChannelRule {
            pattern: (*pattern).into(),
            log_bytes: *log_bytes,
            ..ChannelRule::default()
        };
        let rules = rules.iter().map(rule);
        let limits = TenantLimits { logs: max_bytes, channels: MOST, ..TenantLimits::default() };
        let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
        let account = Account::new(&limits, Arc::clone(&metrics));
        Channels::new(rules.collect(), &limits, None, metrics, account)
    }

    /// The same, letting go when its account says so, as a tenant's channels do.
    fn channels_in_reserve(rules: &[(&str, usize)], max_bytes: usize) -> Arc<Channels> {
        let channels = Arc::new(channels(rules, max_bytes));
        let reserve: Weak<dyn Reserve> = Arc::downgrade(&(Arc::clone(&channels) as Arc<dyn Reserve>));
        channels.account.set_reserve(reserve);
        channels
    }

    fn publication(channel: &str, bytes: usize) -> Publication {
        let data = Frame { kind: Kind::Binary, bytes: vec![0; bytes].into() };
        Publication { channel: channel.into(), key: None, remove: false, data }
    }

    #[test]
    fn the_rule_with_the_full_name_wins_and_then_the_longest_prefix() {
        let channels = channels(&[("a*", 1), ("ab*", 2), ("ab", 3), ("*", 4)], 1000);
        let log_bytes = |name| channels.rules.load().rule_for(name).unwrap().log_bytes;
        assert_eq!((log_bytes("ab"), log_bytes("abc"), log_bytes("ac"), log_bytes("b")), (3, 2, 1, 4));
    }

    #[tokio::test]
    async fn clients_get_what_is_listed_or_when_nothing_is_any_name() {
        let listed = channels(&[("prices", 1000), ("news-*", 1000)], 1000);
        for name in ["prices", "news-", "news-1", MAIN] {
            assert!(listed.follow(name).await.is_ok(), "{name}");
        }
        assert_eq!(listed.follow("other").await.err(), Some(Refused::NotAllowed));
        assert!(channels(&[], 1000).follow("other").await.is_ok());
        assert_eq!(listed.follow("").await.err(), Some(Refused::Name));
    }

    #[tokio::test]
    async fn all_logs_together_stay_within_the_tenants_bytes() {
        let channels = channels(&[], 100_000);
        // Held, as a channel with readers is.
        let held: Vec<_> = ["a", "b", "c"].map(|name| channels.open(name).unwrap()).into();
        for _ in 0..20 {
            for name in ["a", "b", "c"] {
                channels.publish(vec![publication(name, 20_000)], None).await;
                assert!(channels.account.bytes(Part::Logs) <= 100_000);
            }
        }
        // A channel's newest chunk never makes room for another channel: a burst that does not fit is refused.
        let (taken, refused) = channels.publish(vec![publication("a", 90_000)], None).await;
        assert_eq!((taken, refused), (0, vec![Refused::Bytes]));
        drop(held);
        *channels.last_sweep.lock() = None;
        assert_eq!(channels.publish(vec![publication("d", 90_000)], None).await.0, 1);
        assert!(channels.get("a").is_none());
    }

    #[tokio::test]
    async fn a_channel_that_comes_late_gets_its_part_of_the_bytes() {
        let channels = channels(&[], 100_000);
        let _held = ["a", "b", "c"].map(|name| channels.open(name).unwrap());
        for _ in 0..100 {
            channels.publish(vec![publication("a", 1000)], None).await;
        }
        assert!(channels.get("a").unwrap().log_bytes() > 90_000);
        for _ in 0..100 {
            for name in ["b", "c"] {
                assert_eq!(channels.publish(vec![publication(name, 1000)], None).await.0, 1);
                assert!(channels.account.bytes(Part::Logs) <= 100_000);
            }
        }
        assert!(["b", "c"].iter().all(|name| channels.get(name).unwrap().log_bytes() > 5_000));
    }

    #[tokio::test]
    async fn a_reader_lets_go_of_what_its_channel_has_no_room_for() {
        struct Deaf;
        impl Reader for Deaf {
            fn new_chunks(&self, _: usize) {}
        }
        let channels = channels(&[], 100_000);
        let channel = channels.open("a").unwrap();
        let reader: Arc<dyn Reader> = Arc::new(Deaf);
        channel.attach(Arc::clone(&reader), 0);
        channels.publish((0..50).map(|_| publication("a", 1000)).collect(), None).await;
        assert_eq!(channel.read(&reader, 0, |_| ()), 0);
        let _other = channels.open("b").unwrap();
        for _ in 0..80 {
            channels.publish(vec![publication("b", 1000)], None).await;
            channels.publish(vec![publication("a", 10)], None).await;
        }
        assert!(channel.read(&reader, 0, |_| ()) > 0, "what it need not keep is told");
    }

    #[tokio::test]
    async fn made_up_names_make_room_for_others_once_nobody_follows_them() {
        let channels = channels(&[], 100_000);
        let mut followed = Vec::new();
        for nth in 0..MOST / 2 {
            followed.push(channels.follow(&nth.to_string()).await.unwrap());
        }
        assert_eq!(channels.follow("one more").await.err(), Some(Refused::Channels(MOST)));
        assert_eq!(channels.publish(vec![publication("published", 10)], None).await.0, 1);
        drop(followed);
        *channels.last_sweep.lock() = None;
        assert!(channels.follow("one more").await.is_ok());
        assert!(channels.find("never").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn keys_and_snapshots_are_bytes_of_the_tenant() {
        let channels = channels(&[], 1_000_000);
        let keyed =
            |key: usize, bytes| Publication { key: Some(format!("{key:0>250}").into()), ..publication("a", bytes) };
        for round in 0..100 {
            channels.publish((0..10).map(|key| keyed(key, 100)).collect(), None).await;
            let bytes = channels.account.bytes(Part::Logs);
            // Names count too. Each of them is an allocation.
            assert!(bytes >= (round + 1) * 10 * (100 + 250) && bytes <= 1_000_000, "{bytes} in round {round}");
        }
        let channel = channels.get("a").unwrap();
        // The encoded snapshot takes no more: its bytes were counted with the keys.
        let before = channels.account.bytes(Part::Logs);
        assert_eq!(channel.snapshot(Since::Nothing, 0).unwrap().after(0).count(), 10);
        assert_eq!(channels.account.bytes(Part::Logs), before);
        drop(channel);
        channels.open.lock().clear();
        assert_eq!(channels.account.bytes(Part::Logs), 0);
    }

    #[tokio::test]
    async fn what_is_dropped_is_counted_off() {
        let channels = channels(&[("a", 1000)], 100_000);
        let held = channels.open("a").unwrap();
        for _ in 0..50 {
            channels.publish(vec![publication("a", 300)], None).await;
        }
        assert_eq!(channels.account.bytes(Part::Logs), held.log_bytes());
        assert!(held.log_bytes() <= 1000);
        drop(held);
        channels.sweep(&mut channels.open.lock());
        assert_eq!(channels.account.bytes(Part::Logs), 0);
    }

    #[tokio::test]
    async fn what_is_made_for_a_transport_is_bytes_of_the_tenant_as_long_as_the_log_has_it() {
        let channels = channels(&[("a", 10_000)], 1_000_000);
        let channel = channels.open("a").unwrap();
        let bytes = || channels.account.bytes(Part::Logs);
        channels.publish(vec![publication("a", 9_000)], None).await;
        let mut first = None;
        channel.state.lock().log.from(0).for_each(|chunk| first = Some(Arc::clone(chunk)));
        let first = first.unwrap();
        let before = bytes();
        // Base64 takes a third more.
        let made = first.encoded(Format::Sse, &channel).bytes().len();
        assert!(made > 12_000 && bytes() > before + made, "{made}");
        let with_one = bytes();
        first.encoded(Format::Sse, &channel);
        first.encoded(Format::Raw, &channel);
        assert_eq!(bytes(), with_one);
        channels.publish(vec![publication("a", 9_000)], None).await;
        assert_eq!(bytes(), channel.log_bytes());
        // A reader that still holds the chunk may need another format. Those bytes do not count as the log's.
        first.encoded(Format::Centrifuge, &channel);
        drop(first);
        assert_eq!(bytes(), channel.log_bytes());
    }

    #[tokio::test]
    async fn what_is_made_for_transports_stays_within_the_tenants_bytes_and_keeps_nobody_from_publishing() {
        let channels = channels_in_reserve(&[("a", 2_000_000)], 3_000_000);
        let channel = channels.open("a").unwrap();
        for _ in 0..50 {
            channels.publish(vec![publication("a", 30_000)], None).await;
        }
        let mut chunks = Vec::new();
        channel.state.lock().log.from(0).for_each(|chunk| chunks.push(Arc::clone(chunk)));
        for chunk in &chunks {
            chunk.encoded(Format::Sse, &channel);
            chunk.encoded(Format::Centrifuge, &channel);
            assert!(channels.account.bytes(Part::Logs) <= 3_000_000);
        }
        // The log has let go of chunks that this reader holds.
        assert!(channels.account.bytes(Part::Pinned) > 2_000_000);
        for _ in 0..50 {
            assert_eq!(channels.publish(vec![publication("a", 30_000)], None).await.0, 1);
            assert!(channels.account.bytes(Part::Logs) <= 3_000_000);
        }
        drop(chunks);
        assert_eq!(channels.account.bytes(Part::Pinned), 0);
    }
}
