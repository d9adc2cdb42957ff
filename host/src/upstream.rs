//! Upstreams: a partner's WebSocket, held once whatever the number of clients.
//!
//! In come the partner's messages, out go publications: straight to channel `main`, or by way of the tenant's filter.
//! One task owns the connection; it lives as long as the relay and connects again, for ever, when the connection is
//! lost; an upstream on demand, for as long as the tenant has clients, and else it rests. What arrives faster than a
//! filter takes it waits in a queue bounded in bytes, and behind that in the partner's socket.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use config::UpstreamConfig;
use tokio::{sync::mpsc, time::Instant};
use wire::Frame;

use crate::{
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

pub use filter_queue::{FilterEvent, FilterQueue};

pub use crate::upstream::{connect::Connector, on_demand::Need, session::Lost};
use crate::{backoff::Backoff, upstream::session::Silence};

/// Frames from components that wait to be sent.
const OUTBOUND_FRAMES: usize = 256;
/// Largest of them, in bytes: subscriptions are small.
pub const MAX_OUTBOUND: usize = 1 << 20;

/// One upstream and what its messages go through.
pub struct Upstream {
    pub tenant: Arc<str>,
    pub config: UpstreamConfig,
    pub sink: Sink,
    pub metrics: Arc<UpstreamMetrics>,
    pub handle: Arc<Handle>,
    pub need: Need,
}

/// Where messages go.
pub enum Sink {
    /// To channel `main`, as they are, from the upstream of this name.
    Channel(Arc<Channels>, Arc<str>),
    Filter(FilterQueue),
}

/// What others may know of an upstream, and how they reach it.
pub struct Handle {
    pub name: Arc<str>,
    /// Of one that is connected on demand.
    demand: Option<Arc<Demand>>,
    /// Where the connection takes what components want sent; `None`: there is none.
    outbound: Mutex<Option<mpsc::Sender<Frame>>>,
}

/// What components want sent on one connection; what is left at its end goes with it.
struct Outbound {
    sender: mpsc::Sender<Frame>,
    frames: mpsc::Receiver<Frame>,
}

/// How a connection failed, or its opening.
struct Failure {
    reason: String,
    /// How long it was healthy.
    healthy: Duration,
}

/// Why frames were not taken: none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the manifest names no such upstream")]
    Unknown,
    #[error("there is no connection to send on")]
    Disconnected,
    #[error("too many frames wait already")]
    Full,
    #[error("a frame is too large")]
    TooLarge,
}

impl Handle {
    /// `demand`: if it is connected on demand.
    pub fn new(name: Arc<str>, demand: Option<Arc<Demand>>) -> Self {
        Self { name, demand, outbound: Mutex::default() }
    }

    fn is_up(&self) -> bool {
        self.outbound().is_some()
    }

    /// One word for an operator: `up`, `down`, or `resting` while nobody needs it.
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
        let outbound = self.outbound();
        let outbound = outbound.as_ref().ok_or(SendError::Disconnected)?;
        let room = outbound.try_reserve_many(frames.len()).map_err(|_| SendError::Full)?;
        for (place, frame) in room.zip(frames) {
            place.send(frame);
        }
        Ok(())
    }

    fn outbound(&self) -> MutexGuard<'_, Option<mpsc::Sender<Frame>>> {
        self.outbound.lock()
    }
}

impl Upstream {
    /// Keeps the upstream connected, for as long as it is needed, until told to stop.
    pub async fn run(mut self, connector: Connector, mut stop: Stop) {
        let mut backoff = Backoff::default();
        while !stop.is_set() {
            tokio::select! {
                () = self.need.begins() => {}
                () = stop.wait() => return,
            }
            let ended = self.connection(&connector, &mut stop).await;
            if stop.is_set() {
                return;
            }
            let Failure { reason, healthy } = match ended {
                Ok(healthy) => {
                    backoff.note(healthy);
                    tracing::info!(tenant.name = %self.tenant, upstream.name = %self.config.name, "upstream rests");
                    continue;
                }
                Err(failure) => failure,
            };
            // Whoever comes meanwhile waits with the others: the partner is no better for it.
            let wait = backoff.after(healthy);
            tracing::warn!(
                tenant.name = %self.tenant,
                upstream.name = %self.config.name,
                error = %reason,
                retry_ms = wait.as_millis(),
                "no upstream"
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.wait() => {}
            }
        }
    }

    /// One connection, from its opening to its end; `Ok`: nobody needs it any more, or the relay stops, after it was
    /// healthy for so long.
    async fn connection(&mut self, connector: &Connector, stop: &mut Stop) -> Result<Duration, Failure> {
        let connected = tokio::select! {
            connected = connector.connect(&self.config) => connected,
            () = stop.wait() => return Ok(Duration::ZERO),
        };
        let (socket, last_read) = connected.map_err(|error| {
            self.metrics.failed(error.reason());
            Failure { reason: error.to_string(), healthy: Duration::ZERO }
        })?;
        self.metrics.connections.inc();
        tracing::info!(tenant.name = %self.tenant, upstream.name = %self.config.name, "upstream connected");
        let since = Instant::now();
        let mut outbound = Outbound::new();
        let up = Up::new(&self.metrics, &self.handle, &outbound);
        let silence = Silence { last_read, limit: self.config.idle_timeout };
        let (need, metrics) = (&mut self.need, &self.metrics);
        let lost = session::run(socket, &silence, &self.sink, metrics, &mut outbound, need, stop).await;
        // From here on nothing is taken for it.
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
        let healthy = since.elapsed();
        if rests { Ok(healthy) } else { Err(Failure { reason, healthy }) }
    }
}

impl Sink {
    /// Hands on a burst, in order.
    async fn accept(&self, burst: Vec<Frame>) {
        match self {
            Self::Channel(channels, upstream) => {
                let main: Arc<str> = MAIN.into();
                let publish = |data| Publication { channel: Arc::clone(&main), key: None, remove: false, data };
                channels.publish(burst.into_iter().map(publish).collect(), Some(upstream)).await;
            }
            Self::Filter(filter) => filter.frames(burst).await,
        }
    }

    /// The frames to send on a new connection; `None`: the filter broke.
    ///
    /// `outbound`: for what is to be sent later.
    async fn opening(&self, outbound: &mpsc::Sender<Frame>) -> Option<Vec<Frame>> {
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

/// An upstream that shows as connected until this is dropped.
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
