//! Where an upstream's messages go: to its filter's queue, or straight to channel `main`.

use std::{future::ready, sync::Arc, time::Duration};

use config::Overflow;
use futures_util::future::Either;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};
use wire::Frame;

use crate::{
    channel::{Channels, MAIN, Publication},
    metrics::{TenantMetrics, UpstreamMetrics},
    rate::Rate,
    sync::Mutex,
    upstream::{
        filter_queue::{FilterQueue, NoRoom, Taken},
        handle::{Handle, Line},
        state::Status,
    },
};

/// Time between two tries when the tenant's memory is full.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);
/// Time between two tries when the tenant publishes as often as it may.
const RATE_PAUSE: Duration = Duration::from_millis(5);
/// How long messages over the rate are dropped at a time: a gap for each would be worse than one.
const DROPPING: Duration = Duration::from_secs(1);
/// The limit that says how often a tenant may publish.
const RATE_LIMIT: &str = "publications-per-second";

/// Where messages go.
pub enum Sink {
    Channel(ChannelSink),
    Filter(FilterQueue),
}

/// The way to channel `main`, unchanged.
pub struct ChannelSink {
    pub channels: Arc<Channels>,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The tenant's publications a second.
    pub rate: Arc<Rate>,
    pub tenant: Arc<TenantMetrics>,
    pub metrics: Arc<UpstreamMetrics>,
    pub overflow: Overflow,
    pub drops: Mutex<Drops>,
}

/// Messages over the rate that are dropped.
#[derive(Default)]
pub struct Drops {
    /// Until when all are.
    until: Option<Instant>,
    /// Whether nothing was published since.
    untold: bool,
}

/// What became of messages that were taken.
#[derive(Default)]
pub struct Passed {
    /// Why others were dropped. `None`: none were.
    pub dropped: Option<Wait>,
    /// Those, as far as they are not freed yet.
    pub garbage: Vec<Vec<Frame>>,
}

/// Why messages are not taken yet, or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The filter is slower than the partner.
    Filter,
    Memory,
    /// The tenant publishes as often as it may.
    Rate,
}

impl Wait {
    /// The value of the metric's label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Memory => "memory",
            Self::Rate => "rate",
        }
    }

    /// For people.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Filter => "the filter is slower than the partner (limit filter-queue)",
            Self::Memory => "the tenant's memory is full (limit memory-total)",
            Self::Rate => "the tenant publishes as often as it may (limit publications-per-second)",
        }
    }
}

impl From<NoRoom> for Wait {
    fn from(why: NoRoom) -> Self {
        match why {
            NoRoom::Filter => Self::Filter,
            NoRoom::Memory => Self::Memory,
        }
    }
}

impl Sink {
    /// Passes messages on, in order. Those that cannot be taken yet stay where they are.
    pub async fn offer(&self, connection: u64, messages: &mut Vec<Frame>) -> Result<Passed, Wait> {
        match self {
            Self::Channel(channel) => channel.offer(messages).await,
            Self::Filter(filter) => {
                let Taken { dropped, garbage } = filter.offer(connection, messages)?;
                Ok(Passed { dropped: dropped.map(Wait::from), garbage })
            }
        }
    }

    /// Passes the last messages of a connection on, for which nobody can wait.
    pub async fn force(&self, connection: u64, messages: Vec<Frame>) {
        match self {
            Self::Channel(channel) => channel.publish(messages).await,
            Self::Filter(filter) => filter.force(connection, messages),
        }
    }

    /// Returns when what was not taken for this reason, at this time, is to be offered again. It may be cancelled.
    pub async fn ready(&self, wait: Wait, since: Instant) {
        match (self, wait) {
            (Self::Filter(filter), Wait::Filter) => filter.freed().await,
            (_, Wait::Rate) => sleep_until(since + RATE_PAUSE).await,
            (_, Wait::Filter | Wait::Memory) => sleep_until(since + MEMORY_PAUSE).await,
        }
    }

    /// Asks for the frames to send first on a new connection. The answer is `None` if the filter's call failed.
    ///
    /// From now on, or from when the filter begins to answer, components can send on it. `opened`: what the upstream
    /// shows from the answer on.
    pub fn open(
        &self,
        line: Line,
        handle: &Arc<Handle>,
        opened: Status,
    ) -> impl Future<Output = Option<Vec<Frame>>> + use<> {
        match self {
            Self::Channel(_) => {
                let connection = line.connection;
                handle.open(line);
                // Before a client gets a message, and may ask.
                handle.opened(connection, opened);
                Either::Left(ready(Some(Vec::new())))
            }
            Self::Filter(filter) => Either::Right(filter.open(line, handle, opened)),
        }
    }

    /// Notes that a connection is lost.
    pub fn close(&self, connection: u64, reason: String) {
        match self {
            Self::Channel(channel) => channel.lost(),
            Self::Filter(filter) => filter.close(connection, reason),
        }
    }
}

impl ChannelSink {
    async fn offer(&self, messages: &mut Vec<Frame>) -> Result<Passed, Wait> {
        if self.overflow == Overflow::Drop && self.drops.lock().until.is_some_and(|until| Instant::now() < until) {
            return Ok(self.drop_all(messages));
        }
        let taken = self.rate.take_some(messages.len());
        if taken == messages.len() {
            self.publish(std::mem::take(messages)).await;
            return Ok(Passed::default());
        }
        let over = messages.split_off(taken);
        self.publish(std::mem::replace(messages, over)).await;
        match self.overflow {
            Overflow::Wait => Err(Wait::Rate),
            Overflow::Drop => {
                self.drops.lock().until = Some(Instant::now() + DROPPING);
                Ok(self.drop_all(messages))
            }
        }
    }

    fn drop_all(&self, messages: &mut Vec<Frame>) -> Passed {
        self.drops.lock().untold = true;
        self.tenant.limited(RATE_LIMIT, messages.len());
        self.metrics.dropped("rate", messages.len());
        messages.clear();
        // For those who read the channel now.
        self.lost();
        Passed { dropped: Some(Wait::Rate), ..Passed::default() }
    }

    async fn publish(&self, messages: Vec<Frame>) {
        if messages.is_empty() {
            return;
        }
        // Another upstream may have published since the drop.
        if self.overflow == Overflow::Drop && std::mem::take(&mut self.drops.lock().untold) {
            self.lost();
        }
        let main: Arc<str> = MAIN.into();
        let publish = |data| Publication { channel: Arc::clone(&main), key: None, remove: false, data, framed: None };
        let mut publications: Vec<_> = messages.into_iter().map(publish).collect();
        for publication in publications.iter_mut().filter(|publication| publication.is_large()) {
            publication.frame(yield_now).await;
        }
        // What is refused has been counted.
        self.channels.publish(publications, Some(&self.upstream)).await;
    }

    fn lost(&self) {
        // It publishes on no other.
        self.channels.interrupted(MAIN, &self.upstream);
    }
}
