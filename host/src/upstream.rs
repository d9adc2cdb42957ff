//! Upstreams: a partner's WebSocket, held once whatever the number of clients, and opened again after a pause when it
//! is lost.
//!
//! In come the partner's messages, out go publications: straight to channel `main`, or through the tenant's filter. One
//! task owns the connection. It lives as long as the relay, and opens another connection when one is lost. An upstream
//! on demand is connected only while the tenant has clients. What arrives faster than a filter takes it waits in a
//! queue bounded in bytes, and behind that in the partner's socket.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use config::UpstreamConfig;
use tokio::{sync::mpsc, time::Instant};
use tracing::{Span, error_span};
use wire::Frame;

use crate::{
    account::{Account, Charge, Part},
    backoff::{Backoff, Pauses},
    channel::{Channels, MAIN, Publication},
    demand::Demand,
    metrics::UpstreamMetrics,
    shutdown::Stop,
    sync::Mutex,
};

mod connect;
pub mod filter_queue;
mod last_read;
mod on_demand;
mod session;

pub use filter_queue::{FilterEvent, FilterQueue, QueueRoom};

use crate::upstream::session::{Session, Silence};
pub use crate::upstream::{connect::Connector, on_demand::Need, session::Lost};

/// Frames from components that wait to be sent.
const OUTBOUND_FRAMES: usize = 256;
/// Largest of them, in bytes: subscriptions are small.
pub const MAX_OUTBOUND: usize = 1 << 20;

/// Pauses between connections. With jitter, relays that lost a partner together do not come back together.
const PAUSES: Pauses =
    Pauses { free: 0, first: Duration::from_millis(500), longest: Duration::from_secs(30), jitter: true };
/// After a connection that was up for this long, the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(60);

/// One upstream and what its messages go through.
pub struct Upstream {
    pub tenant: Arc<str>,
    pub config: UpstreamConfig,
    pub sink: Sink,
    pub metrics: Arc<UpstreamMetrics>,
    pub handle: Arc<Handle>,
    pub need: Need,
    /// The tenant's, for what is read and not whole yet.
    pub account: Arc<Account>,
}

/// Where messages go.
pub enum Sink {
    /// To channel `main`, unchanged, from the upstream of this name.
    Channel(Arc<Channels>, Arc<str>),
    Filter(FilterQueue),
}

/// A frame that a component wants sent, on the tenant's account while it waits.
pub struct OutboundFrame {
    frame: Frame,
    _charge: Charge,
}

impl OutboundFrame {
    /// `None`: the tenant's memory is full.
    pub fn new(frame: Frame, account: &Arc<Account>) -> Option<Self> {
        let charge = Charge::take(account, Part::Queues, frame.bytes.len() + size_of::<Self>())?;
        Some(Self { frame, _charge: charge })
    }
}

/// What others may know of an upstream, and how they reach it.
pub struct Handle {
    pub name: Arc<str>,
    /// `None`: the upstream is always connected.
    demand: Option<Arc<Demand>>,
    /// The way to the connection for what components want sent. `None`: there is no connection.
    outbound: Mutex<Option<mpsc::Sender<OutboundFrame>>>,
    account: Arc<Account>,
}

/// What components want sent on one connection. What is left at its end is dropped.
struct Outbound {
    sender: mpsc::Sender<OutboundFrame>,
    frames: mpsc::Receiver<OutboundFrame>,
}

/// How a connection ended.
struct Ended {
    /// How long it was up.
    healthy: Duration,
    /// Why it failed. `None`: nobody needs it any more, or the relay stops.
    failure: Option<String>,
}

/// Why none of the frames were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the manifest names no such upstream")]
    Unknown,
    #[error("there is no connection to send on")]
    Disconnected,
    #[error("too many frames wait already")]
    Full,
    #[error("the tenant's memory is full")]
    Memory,
    #[error("a frame is too large")]
    TooLarge,
}

impl Handle {
    /// `demand`: whose clients it is connected for. `None`: it is always to be connected.
    pub fn new(name: Arc<str>, demand: Option<Arc<Demand>>, account: Arc<Account>) -> Self {
        Self { name, demand, outbound: Mutex::default(), account }
    }

    fn is_up(&self) -> bool {
        self.outbound().is_some()
    }

    /// Returns one word for an operator: `up`, `down`, or `resting` while nobody needs it.
    pub fn state(&self) -> &'static str {
        if self.is_up() {
            "up"
        } else if self.demand.as_ref().is_some_and(|demand| !demand.has_clients()) {
            "resting"
        } else {
            "down"
        }
    }

    /// Whether there is a connection to the partner.
    ///
    /// Async for the day when another node has the connection, as is [`Handle::send`]; here neither ever waits.
    #[allow(clippy::unused_async)]
    pub async fn is_connected(&self) -> bool {
        self.is_up()
    }

    /// Queues frames for the partner, all or none.
    #[allow(clippy::unused_async)]
    pub async fn send(&self, frames: Vec<Frame>) -> Result<(), SendError> {
        if frames.iter().any(|frame| frame.bytes.len() > MAX_OUTBOUND) {
            return Err(SendError::TooLarge);
        }
        let frames: Option<Vec<_>> = frames.into_iter().map(|frame| OutboundFrame::new(frame, &self.account)).collect();
        let frames = frames.ok_or(SendError::Memory)?;
        let outbound = self.outbound();
        let outbound = outbound.as_ref().ok_or(SendError::Disconnected)?;
        let room = outbound.try_reserve_many(frames.len()).map_err(|_| SendError::Full)?;
        for (place, frame) in room.zip(frames) {
            place.send(frame);
        }
        Ok(())
    }

    fn outbound(&self) -> MutexGuard<'_, Option<mpsc::Sender<OutboundFrame>>> {
        self.outbound.lock()
    }
}

impl Upstream {
    /// Keeps the upstream connected while it is needed, until told to stop.
    pub async fn run(mut self, connector: Connector, mut stop: Stop) {
        let mut backoff = Backoff::new(PAUSES);
        while !stop.is_set() {
            tokio::select! {
                () = self.need.begins() => {}
                () = stop.wait() => return,
            }
            let Ended { healthy, failure } = self.connection(&connector, &mut stop).await;
            if stop.is_set() {
                return;
            }
            reset_if_healthy(&mut backoff, healthy);
            let Some(reason) = failure else {
                self.span().in_scope(|| tracing::info!("upstream rests"));
                continue;
            };
            // A client that comes now waits too: the partner is in no better state for it.
            let wait = backoff.fail();
            let retry_ms = wait.as_millis();
            self.span().in_scope(|| tracing::warn!(error = %reason, retry_ms, "upstream lost, reconnecting"));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.wait() => {}
            }
        }
    }

    /// Names tenant and upstream in a line that is written within it. It is made for each line, because the task would
    /// enter and leave it at each message.
    fn span(&self) -> Span {
        // At the level of errors, so that no choice of level takes the names away from a line.
        error_span!("upstream", tenant.name = %self.tenant, upstream.name = %self.config.name)
    }

    /// Runs one connection from its opening to its end.
    async fn connection(&mut self, connector: &Connector, stop: &mut Stop) -> Ended {
        let connected = tokio::select! {
            connected = connector.connect(&self.config, &self.account) => connected,
            () = stop.wait() => return Ended { healthy: Duration::ZERO, failure: None },
        };
        let (socket, last_read) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.metrics.failed(error.reason());
                return Ended { healthy: Duration::ZERO, failure: Some(error.to_string()) };
            }
        };
        self.metrics.connections.inc();
        self.span().in_scope(|| tracing::info!("upstream connected"));
        let since = Instant::now();
        let mut outbound = Outbound::new();
        let up = Up::new(&self.metrics, &self.handle, &outbound);
        let session = Session {
            socket,
            silence: Silence { last_read, limit: self.config.idle_timeout },
            sink: &self.sink,
            metrics: &self.metrics,
            outbound: &mut outbound,
            need: &mut self.need,
            stop,
        };
        let lost = session.run().await;
        // From here on it takes no more frames.
        drop((up, outbound));
        let rests = matches!(lost, Lost::Unneeded);
        if rests {
            self.metrics.rests.inc();
        } else {
            self.metrics.failed(lost.reason());
        }
        let reason = lost.to_string();
        match &self.sink {
            Sink::Filter(filter) => filter.close(reason.clone()).await,
            Sink::Channel(channels, upstream) => channels.lost(upstream),
        }
        Ended { healthy: since.elapsed(), failure: (!rests).then_some(reason) }
    }
}

/// Ends the row of failures if the connection was healthy.
fn reset_if_healthy(backoff: &mut Backoff, healthy: Duration) {
    if healthy >= HEALTHY {
        backoff.reset();
    }
}

impl Sink {
    /// Passes a burst on, in order. `false`: there is no memory for it.
    async fn accept(&self, burst: Vec<Frame>) -> bool {
        match self {
            Self::Channel(channels, upstream) => {
                let main: Arc<str> = MAIN.into();
                let publish = |data| Publication { channel: Arc::clone(&main), key: None, remove: false, data };
                // What is refused has been counted.
                channels.publish(burst.into_iter().map(publish).collect(), Some(upstream)).await;
                true
            }
            Self::Filter(filter) => filter.frames(burst).await,
        }
    }

    /// Returns the frames to send first on a new connection. `None`: the filter's call failed.
    ///
    /// `outbound` is for what is to be sent later.
    async fn opening(&self, outbound: &mpsc::Sender<OutboundFrame>) -> Option<Vec<Frame>> {
        match self {
            Self::Channel(..) => Some(Vec::new()),
            Self::Filter(filter) => filter.open(outbound.clone()).await,
        }
    }
}

impl Outbound {
    fn new() -> Self {
        let (sender, frames) = mpsc::channel(OUTBOUND_FRAMES);
        Self { sender, frames }
    }
}

/// Shows the upstream as connected until this is dropped.
struct Up<'a> {
    metrics: &'a UpstreamMetrics,
    handle: &'a Handle,
}

impl<'a> Up<'a> {
    fn new(metrics: &'a UpstreamMetrics, handle: &'a Handle, outbound: &Outbound) -> Self {
        metrics.up.set(1);
        *handle.outbound() = Some(outbound.sender.clone());
        Self { metrics, handle }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.metrics.up.set(0);
        *self.handle.outbound() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_up_for_a_minute_ends_the_row_of_failures() {
        let mut backoff = Backoff::new(Pauses { jitter: false, ..PAUSES });
        let mut fail_after = |seconds| {
            reset_if_healthy(&mut backoff, Duration::from_secs(seconds));
            backoff.fail().as_millis()
        };
        assert_eq!([0, 59, 59].map(&mut fail_after), [500, 1000, 2000]);
        assert_eq!([60, 0].map(&mut fail_after), [500, 1000]);
    }
}
