//! A connection that is not read because its messages cannot be passed on, or whose messages are dropped.
//!
//! Reading may stop and go on many times a second. The log and `/readyz` are told of all of that as one episode: it
//! begins when reading has been stopped again and again for a second, and ends when there was no stop for a second. Of
//! drops they are told at once, for ten seconds: a drop makes room for a while.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};
use wire::Frame;

use crate::{
    metrics::UpstreamMetrics,
    upstream::{
        UpstreamLog,
        sink::{Sink, Wait},
    },
};

const SECOND: Duration = Duration::from_secs(1);
/// How long drops are said.
const AFTER_DROP: Duration = Duration::from_secs(10);

/// Messages that could not be passed on yet.
pub struct Held {
    pub messages: Vec<Frame>,
    pub wait: Wait,
    /// Since when they wait for that.
    pub since: Instant,
    /// When they were last offered.
    pub offered: Instant,
}

impl Held {
    pub fn new(messages: Vec<Frame>, wait: Wait) -> Self {
        let now = Instant::now();
        Self { messages, wait, since: now, offered: now }
    }

    /// Returns when they are to be offered again.
    pub async fn ready(held: Option<&Self>, sink: &Sink) {
        match held {
            Some(held) => sink.ready(held.wait, held.offered).await,
            None => pending().await,
        }
    }
}

/// What keeps a connection from being read.
pub struct Pressure<'m> {
    metrics: &'m UpstreamMetrics,
    now: Option<Episode>,
}

struct Episode {
    wait: Wait,
    /// Whether messages are dropped, instead of the partner not being read.
    drops: bool,
    began: Instant,
    /// When it last waited, or messages were dropped.
    last: Instant,
    /// Since when it waits, as far as it was not counted. `None`: it is read.
    uncounted: Option<Instant>,
    told: bool,
    look_at: Instant,
}

impl<'m> Pressure<'m> {
    pub fn new(metrics: &'m UpstreamMetrics) -> Self {
        Self { metrics, now: None }
    }

    /// Notes that it is not read for now.
    pub fn begins(&mut self, wait: Wait) {
        self.count();
        let now = Instant::now();
        let episode = self.episode(wait, false, now);
        episode.uncounted = Some(now);
    }

    /// Notes that messages were dropped. `true`: what there is to say has changed.
    pub fn drops(&mut self, why: Wait, log: &UpstreamLog) -> bool {
        let now = Instant::now();
        let episode = self.episode(why, true, now);
        episode.last = now;
        let is_new = !std::mem::replace(&mut episode.told, true);
        if is_new {
            let reason = why.explain();
            log.say(|| tracing::warn!(reason, "messages of the upstream are dropped"));
        }
        is_new
    }

    /// The episode that goes on, or a new one.
    fn episode(&mut self, wait: Wait, drops: bool, now: Instant) -> &mut Episode {
        let new = Episode { wait, drops, began: now, last: now, uncounted: None, told: false, look_at: now + SECOND };
        let episode = self.now.get_or_insert(new);
        if (episode.wait, episode.drops) != (wait, drops) {
            (episode.wait, episode.drops, episode.told) = (wait, drops, false);
        }
        episode
    }

    /// Notes that it is read again.
    pub fn ends(&mut self) {
        self.count();
        self.now.iter_mut().for_each(|episode| episode.uncounted = None);
    }

    /// Returns when it is time to look again. It may be cancelled without loss.
    pub async fn look(&self) {
        match &self.now {
            Some(episode) => sleep_until(episode.look_at).await,
            None => pending().await,
        }
    }

    /// Tells the log if there is something to tell. `true`: what there is to say has changed.
    pub fn look_again(&mut self, log: &UpstreamLog) -> bool {
        self.count();
        let now = Instant::now();
        let Some(episode) = &mut self.now else { return false };
        episode.look_at = now + SECOND;
        if now - episode.last >= if episode.drops { AFTER_DROP } else { SECOND } {
            let told = episode.told;
            if told && !episode.drops {
                let waited_ms = (episode.last - episode.began).as_millis();
                log.say(|| tracing::info!(waited_ms, "upstream is read normally again"));
            }
            self.now = None;
            return told;
        }
        if episode.told || now - episode.began < SECOND {
            return false;
        }
        episode.told = true;
        let reason = episode.wait.explain();
        log.say(|| tracing::warn!(reason, "upstream is not read as fast as it sends"));
        true
    }

    /// What there is to say.
    pub fn reason(&self) -> Option<String> {
        let Episode { wait, drops, .. } = self.now.as_ref().filter(|episode| episode.told)?;
        let what = if *drops { "messages are dropped" } else { "the partner is not read as fast as it sends" };
        Some(format!("{what}: {}", wait.explain()))
    }

    /// Whether it has been the filter's fault for a while.
    pub fn is_the_filters(&self) -> bool {
        self.now.as_ref().is_some_and(|episode| episode.told && !episode.drops && episode.wait == Wait::Filter)
    }

    /// Counts the time until now.
    fn count(&mut self) {
        let now = Instant::now();
        if let Some(Episode { wait, last, uncounted: Some(since), .. }) = &mut self.now {
            self.metrics.unread(wait.reason(), now - *since);
            (*last, *since) = (now, now);
        }
    }
}

impl Drop for Pressure<'_> {
    fn drop(&mut self) {
        self.count();
    }
}
