//! An upstream's way to its filter: a queue bounded in bytes.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::sleep,
};
use wire::Frame;

use crate::{
    account::{Account, Charge, Part},
    upstream::OutboundFrame,
};

/// The most bytes that wait for a filter: enough for one message of the largest size allowed. While they do, the
/// upstream is not read.
const QUEUE_BYTES: usize = 64 << 20;
/// Bytes that a queued frame takes besides its payload.
const FRAME_OVERHEAD: usize = 64;
/// Time between two tries when the tenant's memory is full, and how many there are.
const MEMORY_PAUSE: Duration = Duration::from_millis(100);
const MEMORY_TRIES: u32 = 20;
/// The most bursts that wait. The bytes usually bound them sooner.
const QUEUE_BURSTS: usize = 4096;

/// What a filter is told, in order.
pub enum FilterEvent {
    /// A connection is open. Carries the way back for the frames to send first, and the way to the connection for later
    /// ones.
    Open(oneshot::Sender<Option<Vec<Frame>>>, mpsc::Sender<OutboundFrame>),
    Frames(Vec<Frame>, QueueRoom),
    Close(String),
}

/// The room that frames take in the queue, and in the tenant's memory. Dropping this gives it back.
pub struct QueueRoom {
    permit: OwnedSemaphorePermit,
    charge: Charge,
}

impl QueueRoom {
    /// Adds the room of another burst.
    pub fn merge(&mut self, other: Self) {
        self.permit.merge(other.permit);
        self.charge.add(other.charge.bytes());
    }
}

/// An upstream's way to its filter.
pub struct FilterQueue {
    events: mpsc::Sender<FilterEvent>,
    room: Arc<Semaphore>,
    account: Arc<Account>,
    /// Counts the frames that wait.
    waiting: Gauge,
}

impl FilterQueue {
    /// Makes a queue, and the end that its worker takes events from. `waiting` counts the frames that wait.
    pub fn new(waiting: Gauge, account: Arc<Account>) -> (Self, mpsc::Receiver<FilterEvent>) {
        let (events, queued) = mpsc::channel(QUEUE_BURSTS);
        (Self { events, room: Arc::new(Semaphore::new(QUEUE_BYTES)), account, waiting }, queued)
    }

    /// Returns the frames to send first on a new connection. `None`: the filter's call failed.
    ///
    /// `outbound` is for what the filter wants sent later, when channels become active and idle.
    pub async fn open(&self, outbound: mpsc::Sender<OutboundFrame>) -> Option<Vec<Frame>> {
        let (answer, answered) = oneshot::channel();
        self.send(FilterEvent::Open(answer, outbound)).await;
        answered.await.ok().flatten()
    }

    /// Passes a burst on. Waits while the queue is full, and for a while if the tenant's memory is: the partner waits,
    /// too. `false`: there is no memory for the burst, which is lost.
    pub async fn frames(&self, burst: Vec<Frame>) -> bool {
        let bytes: usize = burst.iter().map(|frame| frame.bytes.len() + FRAME_OVERHEAD).sum();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(permits).await {
            let mut charge = Charge::new(&self.account, Part::Queues);
            let mut tries = MEMORY_TRIES;
            while !charge.grow(bytes).await {
                tries -= 1;
                if tries == 0 {
                    return false;
                }
                sleep(MEMORY_PAUSE).await;
            }
            self.waiting.inc_by(signed(burst.len()));
            self.send(FilterEvent::Frames(burst, QueueRoom { permit, charge })).await;
        }
        true
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
