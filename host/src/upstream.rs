//! Upstreams: a partner's WebSocket, held once whatever the number of clients.
//!
//! In come the partner's messages, out go publications: straight to channel `main`, or by way of the tenant's filter.
//! One task owns the connection; it lives as long as the relay and connects again, for ever, when the connection is
//! lost. What arrives faster than a filter takes it waits in a queue bounded in bytes, and behind that in the partner's
//! socket.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    channel::{Channels, Frame, MAIN, Publication},
    component::FilterQueue,
    config::UpstreamConfig,
    metrics::UpstreamMetrics,
    shutdown::Stop,
};

mod backoff;
mod connect;
mod heard;
mod session;

use backoff::Backoff;
pub use connect::{ConnectError, Connector};
pub use session::Lost;
use session::Silence;

/// Frames from components that wait to be sent.
const OUTBOUND_FRAMES: usize = 256;
/// Largest of them, in bytes: subscriptions are small.
const MAX_OUTBOUND: usize = 1 << 20;

/// One upstream and what its messages go through.
pub struct Upstream {
    pub tenant: Arc<str>,
    pub config: UpstreamConfig,
    pub sink: Sink,
    pub metrics: Arc<UpstreamMetrics>,
    pub handle: Arc<Handle>,
    /// What components want sent.
    pub outbound: mpsc::Receiver<Frame>,
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
    up: AtomicBool,
    outbound: mpsc::Sender<Frame>,
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
    /// A handle, and what the upstream's task is to send.
    pub fn new(name: Arc<str>) -> (Self, mpsc::Receiver<Frame>) {
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES);
        (Self { name, up: AtomicBool::new(false), outbound }, frames)
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Queues frames for the partner, all or none.
    pub fn send(&self, frames: Vec<Frame>) -> Result<(), SendError> {
        if frames.iter().any(|frame| frame.bytes.len() > MAX_OUTBOUND) {
            return Err(SendError::TooLarge);
        }
        if !self.is_up() {
            return Err(SendError::Disconnected);
        }
        let room = self.outbound.try_reserve_many(frames.len()).map_err(|_| SendError::Full)?;
        for (place, frame) in room.zip(frames) {
            place.send(frame);
        }
        Ok(())
    }
}

impl Upstream {
    /// Keeps the upstream connected until told to stop.
    pub async fn run(mut self, connector: Connector, mut stop: Stop) {
        let mut backoff = Backoff::default();
        while !stop.is_set() {
            let (reason, healthy) = self.connection(&connector, &mut stop).await;
            if stop.is_set() {
                return;
            }
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

    /// One connection, from its opening to its end: why it ended and how long it was healthy.
    async fn connection(&mut self, connector: &Connector, stop: &mut Stop) -> (String, Duration) {
        let connected = tokio::select! {
            connected = connector.connect(&self.config) => connected,
            () = stop.wait() => return (String::new(), Duration::ZERO),
        };
        let (socket, heard) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.metrics.failed(error.reason());
                return (error.to_string(), Duration::ZERO);
            }
        };
        self.metrics.connections.inc();
        tracing::info!(tenant.name = %self.tenant, upstream.name = %self.config.name, "upstream connected");
        let since = Instant::now();
        // What an earlier connection left unsent was meant for that one.
        while self.outbound.try_recv().is_ok() {}
        let up = Up::new(&self.metrics, &self.handle);
        let silence = Silence { heard, limit: self.config.idle_timeout };
        let lost = session::run(socket, &silence, &self.sink, &self.metrics, &mut self.outbound, stop).await;
        drop(up);
        self.metrics.failed(lost.reason());
        let reason = lost.to_string();
        match &self.sink {
            Sink::Filter(filter) => filter.close(reason.clone()).await,
            Sink::Channel(channels, upstream) => channels.lost(upstream),
        }
        (reason, since.elapsed())
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
    async fn opening(&self) -> Option<Vec<Frame>> {
        match self {
            Self::Channel(..) => Some(Vec::new()),
            Self::Filter(filter) => filter.open().await,
        }
    }
}

/// An upstream that shows as connected until this is dropped.
struct Up<'a> {
    metrics: &'a UpstreamMetrics,
    handle: &'a Handle,
}

impl<'a> Up<'a> {
    fn new(metrics: &'a UpstreamMetrics, handle: &'a Handle) -> Self {
        metrics.up.set(1);
        handle.up.store(true, Ordering::Relaxed);
        Self { metrics, handle }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.metrics.up.set(0);
        self.handle.up.store(false, Ordering::Relaxed);
    }
}
