//! The channels of a tenant: which there are, how much memory they may take together, and the one way to publish.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use config::{ChannelRule, TenantLimits};
use indexmap::IndexMap;
use wire::Frame;

use crate::{
    account::{Account, LIMIT, Part, Reserve},
    channel::{
        Channel, ChannelState, Chunk, MAIN, Publication, Refused, check_name, chunk_limit, ledger::LogLedger,
        publication::check, sizes::Sizes, snapshot::Snapshot,
    },
    demand::Demand,
    metrics::TenantMetrics,
    sync::Mutex,
};

/// Channels that one search for those that nobody reads looks at. The next search goes on behind them.
const SWEEP: usize = 1024;
/// Channels that are changed at a time.
const STEP: usize = 256;
/// Patterns that a client is told which names no channel.
const SHOWN: usize = 8;
/// Times that logs drop chunks in one go for memory that is needed elsewhere.
const DROPS: usize = 256;

/// A channel, and the publications that it gets at once.
type Burst = (Arc<Channel>, Vec<Publication>);

/// The channels of one tenant.
pub struct Channels {
    rules: ArcSwap<Rules>,
    metrics: Arc<TenantMetrics>,
    /// Notified when a channel gets its first subscriber, or loses its last.
    pub demand: Arc<Demand>,
    open: Mutex<OpenChannels>,
    /// Which logs are largest.
    sizes: Arc<Sizes>,
    /// Has the bytes of all logs and snapshots.
    account: Arc<Account>,
    /// Most channels that exist at once, published to or subscribed to.
    max_channels: AtomicUsize,
    /// Whether the log says of this manifest that there is a channel which it does not list.
    told_unlisted: AtomicBool,
}

/// The channels that exist.
#[derive(Default)]
struct OpenChannels {
    all: IndexMap<Arc<str>, Arc<Channel>>,
    /// Where the next search for channels that nobody reads begins.
    look_at: usize,
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
            sizes: Arc::default(),
            account,
            max_channels: AtomicUsize::new(limits.channels),
            told_unlisted: AtomicBool::new(false),
        }
    }

    /// Takes the rules and limits of another manifest, for channels that are yet to come. [`Channels::apply_rules`] has
    /// the others follow. Clients of a channel that is no longer listed keep following it.
    pub fn reconfigure(&self, rules: Vec<ChannelRule>, limits: &TenantLimits, compress_above: Option<usize>) {
        self.max_channels.store(limits.channels, Ordering::Relaxed);
        self.rules.store(Arc::new(Rules::new(rules, compress_above)));
        self.told_unlisted.store(false, Ordering::Relaxed);
    }

    /// Has the channels that exist follow the newest rules. It takes a while if they are many.
    pub fn apply_rules(&self) {
        self.for_each(|channel| {
            let rules = self.rules.load();
            channel.reconfigure(rules.rule_for(&channel.name).cloned().unwrap_or_default(), rules.compress_above);
        });
    }

    /// Does something with each channel, a few at a time. One that is opened meanwhile may be left out.
    fn for_each(&self, mut act: impl FnMut(&Channel)) {
        let mut before = usize::MAX;
        while let Some(channels) = self.step(&mut before) {
            channels.iter().for_each(|channel| act(channel));
        }
    }

    /// The channels before an index, a few of them, for a caller who goes down to the first. `None`: there are none.
    fn step(&self, before: &mut usize) -> Option<Vec<Arc<Channel>>> {
        let open = self.open.lock();
        // Downwards: who is removed has its place taken by one that was there before.
        let to = (*before).min(open.all.len());
        let from = to.saturating_sub(STEP);
        *before = from;
        let channels = open.all.get_range(from..to)?.values().map(Arc::clone).collect();
        (to > 0).then_some(channels)
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
        if open.all.len() >= max_channels / 2 && !open.all.contains_key(name) {
            self.sweep(&mut open);
            if open.all.len() >= max_channels / 2 {
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

    /// What the manifest lists, if it lists channels and [`MAIN`] is none of them.
    pub fn listed_without_main(&self) -> Option<String> {
        let rules = self.rules.load();
        let others = !rules.rules.is_empty() && rules.rule_for(MAIN).is_none();
        others.then(|| {
            let shown: Vec<_> = rules.rules.iter().take(SHOWN).map(|rule| &*rule.pattern).collect();
            let more = if rules.rules.len() > SHOWN { " and more" } else { "" };
            format!("{}{more}", shown.join(", "))
        })
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
            self.note_unlisted(&channel, count);
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

    /// Counts publications on a channel that the manifest does not list, so that nobody can follow it. The first is
    /// logged.
    fn note_unlisted(&self, channel: &Channel, publications: usize) {
        // A rule has a pattern. That of a new manifest may not have come to the channel yet.
        if !channel.rule.load().pattern.is_empty() || *channel.name == *MAIN {
            return;
        }
        let rules = self.rules.load();
        if rules.rules.is_empty() || rules.rule_for(&channel.name).is_some() {
            return;
        }
        self.metrics.unlisted(publications);
        if !self.told_unlisted.swap(true, Ordering::Relaxed) {
            let (tenant, channel) = (self.metrics.tenant(), &*channel.name);
            tracing::warn!(
                tenant.name = %tenant,
                channel.name = channel,
                "a channel is published to that the manifest does not list, so nobody can follow it"
            );
        }
    }

    /// Begins a new epoch in every channel that has publications of an upstream. Called when that upstream, or a part
    /// of what it sent, is lost. The channels are many: this does a few of them, those before an index, first all
    /// (`usize::MAX`). Returns the index for the next call. `None`: there are no more.
    pub fn lost(&self, upstream: &Arc<str>, mut before: usize) -> Option<usize> {
        self.step(&mut before)?.iter().for_each(|channel| channel.lost(upstream));
        (before > 0).then_some(before)
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
        if let Some(channel) = open.all.get(name) {
            return Ok(Arc::clone(channel));
        }
        let max_channels = self.max_channels();
        if open.all.len() >= max_channels && !self.sweep(&mut open) {
            self.metrics.limited("channels", 1);
            return Err(Refused::Channels(max_channels));
        }
        let rules = self.rules.load();
        let rule = rules.rule_for(name).cloned().unwrap_or_default();
        let name: Arc<str> = name.into();
        let channel = Arc::new_cyclic(|own| Channel {
            name: Arc::clone(&name),
            metrics: Arc::clone(&self.metrics),
            compress_above: AtomicUsize::new(rules.compress_above),
            subscribers: AtomicUsize::new(0),
            demand: Arc::clone(&self.demand),
            ledger: LogLedger::new(&self.account, self.sizes.place(Weak::clone(own))),
            state: Mutex::new(ChannelState::new(&rule)),
            rule: ArcSwap::from_pointee(rule),
        });
        open.all.insert(name, Arc::clone(&channel));
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
        self.open.lock().all.get(name).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.lock().all.len()
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
        loop {
            let own = channel.log_bytes();
            if fits(own) {
                return true;
            }
            if !self.drop_from_largest(own, false) {
                return false;
            }
        }
    }

    /// Has the largest log drop its oldest chunks, if it has more than `least` bytes. `false`: there is none.
    fn drop_from_largest(&self, least: usize, even_newest: bool) -> bool {
        for _ in 0..STEP {
            let Some(largest) = self.sizes.largest(even_newest) else { return false };
            if largest.log_bytes() <= least {
                return false;
            }
            if largest.drop_oldest(even_newest) {
                return true;
            }
        }
        false
    }

    /// Drops channels that nobody reads, to make room for others: of the next few. Returns whether there is room now.
    fn sweep(&self, open: &mut OpenChannels) -> bool {
        let OpenChannels { all, look_at } = open;
        // Where one is taken out, another takes its place and is looked at, too.
        for _ in 0..SWEEP.min(2 * all.len()) {
            if *look_at >= all.len() {
                *look_at = 0;
            }
            // A channel that is held elsewhere has readers, or a handshake or a publication uses it now.
            match all.get_index(*look_at) {
                Some((_, channel)) if Arc::strong_count(channel) == 1 && !channel.is_kept() => {
                    all.swap_remove_index(*look_at);
                }
                _ => *look_at += 1,
            }
        }
        all.len() < self.max_channels() && self.account.logs_excess() == 0
    }
}

/// The logs let go when the tenant needs their memory elsewhere, and when formats that clients need make them too
/// large: the largest first, and in the end also the newest chunks.
impl Reserve for Channels {
    fn let_go(&self, bytes: usize) {
        self.sweep(&mut self.open.lock());
        let enough = self.account.bytes(Part::Logs).saturating_sub(bytes);
        for _ in 0..DROPS {
            if self.account.bytes(Part::Logs) <= enough || !self.drop_from_largest(0, true) {
                return;
            }
        }
    }
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
    use wire::{Frame, Kind};

    use super::*;
    use crate::{
        channel::{Format, Reader, Since, SnapshotNow},
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
        Publication { channel: channel.into(), key: None, remove: false, data, framed: None }
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
        let SnapshotNow::Ready(snapshot) = channel.snapshot(Since::Nothing, 0) else { panic!("it is small") };
        assert_eq!(snapshot.after(0).count(), 10);
        drop(snapshot);
        assert_eq!(channels.account.bytes(Part::Logs), before);
        drop(channel);
        channels.open.lock().all.clear();
        assert_eq!(channels.account.bytes(Part::Logs), 0);
    }

    #[tokio::test]
    async fn a_channel_with_nothing_but_a_snapshot_in_other_formats_does_not_hold_up_those_who_need_memory() {
        let channels = channels_in_reserve(&[], 100_000);
        let keyed = |key: usize| Publication { key: Some(key.to_string().into()), ..publication("a", 2_000) };
        channels.publish((0..10).map(keyed).collect(), None).await;
        let channel = channels.get("a").unwrap();
        let SnapshotNow::Ready(snapshot) = channel.snapshot(Since::Nothing, 0) else { panic!("it is small") };
        snapshot.encoded(Format::Sse, &channel);
        while channel.drop_oldest(true) {}
        assert!(channel.log_bytes() > 0);
        channels.let_go(usize::MAX);
        // It is found again once it has something to drop.
        channels.publish(vec![publication("a", 10)], None).await;
        assert!(channels.drop_from_largest(0, true));
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
            for format in [Format::Sse, Format::Centrifuge] {
                // On a busy machine the pause may be long.
                channels.account.end_relief_pause();
                chunk.encoded(format, &channel);
            }
            assert!(channels.account.bytes(Part::Logs) <= 3_000_000);
        }
        // The log has let go of chunks that this reader holds.
        assert!(channels.account.bytes(Part::Pinned) > 2_000_000);
        for _ in 0..50 {
            channels.account.end_relief_pause();
            assert_eq!(channels.publish(vec![publication("a", 30_000)], None).await.0, 1);
            assert!(channels.account.bytes(Part::Logs) <= 3_000_000);
        }
        drop(chunks);
        assert_eq!(channels.account.bytes(Part::Pinned), 0);
    }
}
