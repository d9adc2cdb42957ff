//! An upstream's way to its filter: a queue bounded in bytes.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wire::Frame;

/// The most bytes that wait for a filter: enough for one message of the largest size allowed. While they do, the
/// upstream is not read.
const QUEUE_BYTES: usize = 64 << 20;
/// Bytes that a queued frame takes besides its payload.
const FRAME_OVERHEAD: usize = 64;
/// The most bursts that wait. The bytes usually bound them sooner.
const QUEUE_BURSTS: usize = 4096;

/// What a filter is told, in order.
pub enum FilterEvent {
    /// A connection is open. Carries the way back for the frames to send first, and the way to the connection for later
    /// ones.
    Open(oneshot::Sender<Option<Vec<Frame>>>, mpsc::Sender<Frame>),
    Frames(Vec<Frame>, OwnedSemaphorePermit),
    Close(String),
}

/// An upstream's way to its filter.
pub struct FilterQueue {
    events: mpsc::Sender<FilterEvent>,
    room: Arc<Semaphore>,
    /// Counts the frames that wait.
    waiting: Gauge,
}

impl FilterQueue {
    /// Makes a queue, and the end that its worker takes events from. `waiting` counts the frames that wait.
    pub fn new(waiting: Gauge) -> (Self, mpsc::Receiver<FilterEvent>) {
        let (events, queued) = mpsc::channel(QUEUE_BURSTS);
        (Self { events, room: Arc::new(Semaphore::new(QUEUE_BYTES)), waiting }, queued)
    }

    /// Returns the frames to send first on a new connection. `None`: the filter's call failed.
    ///
    /// `outbound` is for what the filter wants sent later, when channels become active and idle.
    pub async fn open(&self, outbound: mpsc::Sender<Frame>) -> Option<Vec<Frame>> {
        let (answer, answered) = oneshot::channel();
        self.send(FilterEvent::Open(answer, outbound)).await;
        answered.await.ok().flatten()
    }

    /// Passes a burst on. Waits while the queue is full.
    pub async fn frames(&self, burst: Vec<Frame>) {
        let bytes: usize = burst.iter().map(|frame| frame.bytes.len() + FRAME_OVERHEAD).sum();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(permits).await {
            self.waiting.inc_by(signed(burst.len()));
            self.send(FilterEvent::Frames(burst, permit)).await;
        }
    }

    /// Tells the filter that the connection is lost.
    pub async fn close(&self, reason: String) {
        self.send(FilterEvent::Close(reason)).await;
    }

    async fn send(&self, event: FilterEvent) {
        if self.events.send(event).await.is_err() {
            tracing::error!("a filter's worker is gone");
        }
    }
}

/// Converts a number of frames for a gauge.
pub fn signed(frames: usize) -> i64 {
    i64::try_from(frames).unwrap_or(i64::MAX)
}
