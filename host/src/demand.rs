//! Demand: what a tenant's clients need from its upstreams.
//!
//! Shards and handshakes report when clients come and go, and when a channel gets its first subscriber or loses its
//! last. They never wait, and take a lock only when a count changes between none and one. The followers are woken and
//! look: an upstream that connects on demand, and a filter that subscribes upstream only to channels that someone
//! reads. No publication passes through here.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::sync::Mutex;

/// How long a channel has no subscriber before it counts as idle. A page reloads in less time, and most partners take
/// subscriptions that come and go quickly for abuse.
const QUIET: Duration = Duration::from_secs(2);
/// The most channels that one filter is told are active: twice as many as can be by default, since the others are in
/// their quiet time. Above this, the channel that has been quiet for longest becomes idle at once.
const MAX_TOLD: usize = 20_000;

/// What one tenant's clients need.
#[derive(Default)]
pub struct Demand {
    clients: AtomicUsize,
    /// Notified when the first client comes or the last one leaves.
    changed: watch::Sender<()>,
    channels: Mutex<ActiveChannels>,
}

#[derive(Default)]
struct ActiveChannels {
    /// How often a channel became active, minus how often it became idle. Channels at 0 are left out. Two shards'
    /// reports about one channel may come in either order: the sum is right once both are in.
    active: HashMap<Arc<str>, i32>,
    followers: Vec<FollowerState>,
}

/// A channel that has its first subscriber, or has had none for two seconds.
#[derive(Debug, PartialEq, Eq)]
pub struct ChannelChange {
    pub channel: Arc<str>,
    pub active: bool,
    /// Whether it was told before on this connection.
    pub again: bool,
}

impl Demand {
    pub fn client_came(&self) {
        if self.clients.fetch_add(1, Ordering::Relaxed) == 0 {
            self.changed.send_replace(());
        }
    }

    pub fn client_went(&self) {
        if self.clients.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.changed.send_replace(());
        }
    }

    /// Whether a client is connected, whatever it follows: it may subscribe later, or ask the upstream for something.
    pub fn has_clients(&self) -> bool {
        self.clients.load(Ordering::Relaxed) > 0
    }

    /// Tells when to look at [`Demand::has_clients`] again.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A channel has got its first subscriber.
    pub fn channel_active(&self, name: &Arc<str>) {
        self.channels.lock().changed(name, 1);
    }

    /// A channel has lost its last subscriber.
    pub fn channel_idle(&self, name: &Arc<str>) {
        self.channels.lock().changed(name, -1);
    }

    /// Adds a follower, which is told of channels from now on.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let mut channels = self.channels.lock();
        let wake = Arc::new(Notify::new());
        channels.followers.push(FollowerState { wake: Arc::clone(&wake), ..FollowerState::default() });
        Follower { demand: Arc::clone(self), nth: channels.followers.len() - 1, wake }
    }
}

impl ActiveChannels {
    fn changed(&mut self, name: &Arc<str>, step: i32) {
        let count = self.active.entry(Arc::clone(name)).or_default();
        let was_active = *count > 0;
        *count += step;
        let active = *count > 0;
        if *count == 0 {
            self.active.remove(name);
        }
        if active != was_active {
            let now = Instant::now();
            self.followers.iter_mut().for_each(|told| told.changed(name, active, now));
        }
    }
}

/// One filter's view of its tenant's channels: what it was told on this connection, and what it is still to be told.
pub struct Follower {
    demand: Arc<Demand>,
    /// Its index in `followers`.
    nth: usize,
    wake: Arc<Notify>,
}

impl Follower {
    /// Starts a new connection: every active channel is news.
    pub fn begin(&self) {
        let mut channels = self.demand.channels.lock();
        let ActiveChannels { active, followers } = &mut *channels;
        if let Some(told) = followers.get_mut(self.nth) {
            told.clear();
            told.connected = true;
            told.unseen = active.keys().cloned().collect();
        }
    }

    /// Tells of the channels that were told as active once more.
    pub fn repeat(&self) {
        if let Some(told) = self.demand.channels.lock().followers.get_mut(self.nth) {
            told.again = told.active.iter().cloned().collect();
        }
    }

    /// Ends the connection: there is nothing more to tell.
    pub fn end(&self) {
        if let Some(told) = self.demand.channels.lock().followers.get_mut(self.nth) {
            told.clear();
        }
    }

    /// Takes the next change, which then counts as told. The changes of one channel alternate, and the first says
    /// active.
    pub fn next(&self) -> Option<ChannelChange> {
        let mut channels = self.demand.channels.lock();
        let ActiveChannels { active, followers } = &mut *channels;
        followers.get_mut(self.nth)?.next(active, Instant::now())
    }

    /// Returns when there may be a next change. It may be cancelled: nothing is missed.
    pub async fn changed(&self) {
        let due = { self.demand.channels.lock().followers.get(self.nth).and_then(FollowerState::due) };
        tokio::select! {
            // The notification comes first, so that it is used up and does not wake the next call.
            biased;
            () = self.wake.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a follower was told, and what it is still to be told. A channel is at most once in `coming` and `going`
/// together.
#[derive(Default)]
struct FollowerState {
    connected: bool,
    /// Channels that it was told are active.
    active: HashSet<Arc<str>>,
    /// Channels that it was told are active, and is to be told of once more.
    again: Vec<Arc<str>>,
    /// Channels that were active when the connection began and have not been looked at since. Sorting them at that
    /// moment would hold up the shards.
    unseen: Vec<Arc<str>>,
    /// The time since which a channel differs from what was told.
    since: HashMap<Arc<str>, Instant>,
    /// The channels of `since`, oldest first: `coming` are to be told as active, `going` as idle after their quiet
    /// time.
    coming: BTreeSet<(Instant, Arc<str>)>,
    going: BTreeSet<(Instant, Arc<str>)>,
    wake: Arc<Notify>,
}

impl FollowerState {
    fn clear(&mut self) {
        *self = Self { wake: Arc::clone(&self.wake), ..Self::default() };
    }

    /// Records that a channel became active or idle. If that is what was told last, there is nothing to tell.
    fn changed(&mut self, name: &Arc<str>, active: bool, now: Instant) {
        if !self.connected {
            return;
        }
        let told = self.active.contains(name);
        let list = if told { &mut self.going } else { &mut self.coming };
        if told != active {
            self.since.insert(Arc::clone(name), now);
            list.insert((now, Arc::clone(name)));
            self.wake.notify_one();
        } else if let Some(since) = self.since.remove(name) {
            list.remove(&(since, Arc::clone(name)));
        }
    }

    fn next(&mut self, active: &HashMap<Arc<str>, i32>, now: Instant) -> Option<ChannelChange> {
        while let Some(channel) = self.again.pop() {
            if self.active.contains(&channel) {
                return Some(ChannelChange { channel, active: true, again: true });
            }
        }
        let full = self.active.len() >= MAX_TOLD && !self.coming.is_empty();
        if self.going.first().is_some_and(|(since, _)| full || now.duration_since(*since) >= QUIET) {
            let (_, channel) = self.going.pop_first()?;
            self.since.remove(&channel);
            self.active.remove(&channel);
            return Some(ChannelChange { channel, active: false, again: false });
        }
        let channel = self.next_unseen(active).or_else(|| Some(self.coming.pop_first()?.1))?;
        self.since.remove(&channel);
        self.active.insert(Arc::clone(&channel));
        Some(ChannelChange { channel, active: true, again: false })
    }

    /// Takes an unseen channel that is still active. One that was idle in between is in the other lists.
    fn next_unseen(&mut self, active: &HashMap<Arc<str>, i32>) -> Option<Arc<str>> {
        while let Some(name) = self.unseen.pop() {
            let listed = self.active.contains(&name) || self.since.contains_key(&name);
            if !listed && active.get(&name).is_some_and(|count| *count > 0) {
                return Some(name);
            }
        }
        None
    }

    /// When there will be something to tell, which may be in the past.
    fn due(&self) -> Option<Instant> {
        if self.again.is_empty() && self.unseen.is_empty() && self.coming.is_empty() {
            return self.going.first().map(|(since, _)| *since + QUIET);
        }
        Some(Instant::now())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::{advance, timeout};

    use super::*;

    const AN_INSTANT: Duration = Duration::from_millis(1);

    fn followed() -> (Arc<Demand>, Follower) {
        let demand = Arc::new(Demand::default());
        let follower = demand.follow();
        (demand, follower)
    }

    /// All that there is to tell now.
    fn news(follower: &Follower) -> Vec<(String, bool)> {
        std::iter::from_fn(|| follower.next()).map(|change| (change.channel.to_string(), change.active)).collect()
    }

    fn one(name: &str, active: bool) -> Vec<(String, bool)> {
        vec![(name.to_owned(), active)]
    }

    #[tokio::test(start_paused = true)]
    async fn active_at_once_idle_after_a_quiet_time() {
        let (demand, follower) = followed();
        let a: Arc<str> = "a".into();
        follower.begin();
        demand.channel_active(&a);
        assert_eq!(news(&follower), one("a", true));
        demand.channel_idle(&a);
        advance(QUIET - AN_INSTANT).await;
        assert_eq!(news(&follower), []);
        advance(AN_INSTANT).await;
        assert_eq!(news(&follower), one("a", false));
        advance(QUIET * 2).await;
        assert_eq!(news(&follower), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_as_active_can_be_told_again_and_still_becomes_idle() {
        let (demand, follower) = followed();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        follower.begin();
        demand.channel_active(&a);
        assert_eq!(news(&follower), one("a", true));
        demand.channel_idle(&a);
        demand.channel_active(&b);
        follower.repeat();
        timeout(AN_INSTANT, follower.changed()).await.unwrap();
        let told: Vec<_> = std::iter::from_fn(|| follower.next()).map(|it| (it.channel, it.active, it.again)).collect();
        assert_eq!(told, [(a, true, true), (b, true, false)]);
        advance(QUIET).await;
        assert_eq!(news(&follower), one("a", false));
        follower.begin();
        follower.repeat();
        assert_eq!(news(&follower), one("b", true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_comes_back_in_time_is_no_news() {
        let (demand, follower) = followed();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        follower.begin();
        demand.channel_active(&a);
        assert_eq!(news(&follower), one("a", true));
        for _ in 0..10 {
            demand.channel_idle(&a);
            // A channel that nobody was told of.
            demand.channel_active(&b);
            demand.channel_idle(&b);
            advance(QUIET - AN_INSTANT).await;
            demand.channel_active(&a);
            assert_eq!(news(&follower), []);
        }
        // The quiet time starts again each time.
        demand.channel_idle(&a);
        advance(QUIET - AN_INSTANT).await;
        assert_eq!(news(&follower), []);
        advance(AN_INSTANT).await;
        assert_eq!(news(&follower), one("a", false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_is_woken_when_there_is_news_and_only_then() {
        let (demand, follower) = followed();
        let a: Arc<str> = "a".into();
        timeout(QUIET * 10, follower.changed()).await.unwrap_err();
        follower.begin();
        timeout(QUIET * 10, follower.changed()).await.unwrap_err();
        demand.channel_active(&a);
        // It returns at once: first for the notification, then for as long as the change is not taken.
        for _ in 0..3 {
            timeout(AN_INSTANT, follower.changed()).await.unwrap();
        }
        assert_eq!(news(&follower), one("a", true));
        timeout(QUIET * 10, follower.changed()).await.unwrap_err();
        demand.channel_idle(&a);
        follower.changed().await;
        let began = Instant::now();
        follower.changed().await;
        assert_eq!(began.elapsed(), QUIET);
        assert_eq!(news(&follower), one("a", false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_told_what_is_active_then() {
        let (demand, follower) = followed();
        let [a, b, c, d] = ["a", "b", "c", "d"].map(Arc::<str>::from);
        for name in [&a, &b, &c] {
            demand.channel_active(name);
        }
        assert_eq!(news(&follower), []);
        follower.begin();
        // Changes that come before everything was told.
        demand.channel_idle(&b);
        demand.channel_idle(&c);
        demand.channel_active(&c);
        demand.channel_active(&d);
        let mut told = news(&follower);
        told.sort();
        assert_eq!(told, [one("a", true), one("c", true), one("d", true)].concat());
        follower.end();
        demand.channel_idle(&a);
        advance(QUIET).await;
        assert_eq!(news(&follower), []);
        follower.begin();
        let mut told = news(&follower);
        told.sort();
        assert_eq!(told, [one("c", true), one("d", true)].concat());
    }

    #[test]
    fn word_that_comes_in_the_wrong_order_is_right_in_the_end() {
        let (demand, follower) = followed();
        let a: Arc<str> = "a".into();
        follower.begin();
        // One shard loses the last subscriber and another gets the next one. The second report comes first.
        demand.channel_active(&a);
        assert_eq!(news(&follower), one("a", true));
        demand.channel_active(&a);
        demand.channel_idle(&a);
        assert_eq!(news(&follower), []);
        assert!(demand.channels.lock().followers[0].going.is_empty());
        // The same without a subscriber before.
        demand.channel_idle(&a);
        demand.channel_idle(&a);
        demand.channel_active(&a);
        assert!(demand.channels.lock().active.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let (demand, follower) = followed();
        follower.begin();
        let mut idle = 0;
        for nth in 0..MAX_TOLD * 2 {
            let name: Arc<str> = nth.to_string().into();
            demand.channel_active(&name);
            idle += news(&follower).iter().filter(|(_, active)| !active).count();
            demand.channel_idle(&name);
            assert!(demand.channels.lock().followers[0].active.len() <= MAX_TOLD);
        }
        assert_eq!(idle, MAX_TOLD);
        assert!(demand.channels.lock().active.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_there_from_the_first_to_the_last() {
        let demand = Demand::default();
        let mut changed = demand.watch();
        assert!(!demand.has_clients());
        demand.client_came();
        assert!(changed.has_changed().unwrap() && demand.has_clients());
        changed.mark_unchanged();
        demand.client_came();
        demand.client_went();
        assert!(!changed.has_changed().unwrap() && demand.has_clients());
        demand.client_went();
        assert!(changed.has_changed().unwrap() && !demand.has_clients());
    }

    /// One of four channels changes, time passes, the connection is replaced, or news is taken.
    #[derive(Clone, Debug)]
    enum TestStep {
        Flip(usize),
        Wait(u64),
        Begin,
        Take,
    }

    fn step() -> impl Strategy<Value = TestStep> {
        prop_oneof![
            6 => (0..4_usize).prop_map(TestStep::Flip),
            3 => (0..3_000_u64).prop_map(TestStep::Wait),
            1 => Just(TestStep::Begin),
            4 => Just(TestStep::Take),
        ]
    }

    proptest! {
        #[test]
        fn news_alternates_and_agrees_with_what_is(steps in prop::collection::vec(step(), 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (demand, follower) = followed();
                let names = ["a", "b", "c", "d"].map(Arc::<str>::from);
                let (mut active, mut told) = ([false; 4], [false; 4]);
                follower.begin();
                for step in steps.into_iter().chain([TestStep::Wait(2_000), TestStep::Take]) {
                    match step {
                        TestStep::Flip(nth) => {
                            active[nth] = !active[nth];
                            if active[nth] { demand.channel_active(&names[nth]) } else { demand.channel_idle(&names[nth]) }
                        }
                        TestStep::Wait(millis) => advance(Duration::from_millis(millis)).await,
                        TestStep::Begin => {
                            follower.begin();
                            told = [false; 4];
                        }
                        TestStep::Take => {
                            while let Some(change) = follower.next() {
                                let nth = names.iter().position(|name| *name == change.channel).unwrap();
                                assert_ne!(told[nth], change.active, "told twice");
                                assert_eq!(active[nth], change.active, "told a wrong state");
                                told[nth] = change.active;
                            }
                            // No active channel waits to be told.
                            assert!((0..4).all(|nth| told[nth] || !active[nth]));
                        }
                    }
                }
                assert_eq!(told, active);
            });
        }
    }
}
