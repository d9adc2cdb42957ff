//! What others may know of an upstream, and how they reach its connection.

use std::sync::{Arc, MutexGuard};

use tokio::{sync::mpsc, time::Instant};
use wire::Frame;

use crate::{
    account::{Account, Charge, Part},
    demand::Demand,
    sync::Mutex,
};

/// Largest frame of a component, in bytes: subscriptions are small.
pub const MAX_OUTBOUND: usize = 1 << 20;

/// A frame that a component wants sent, on the tenant's account while it waits.
pub struct OutboundFrame {
    pub frame: Frame,
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
    /// Why there is no connection.
    trouble: Mutex<Option<Trouble>>,
    account: Arc<Account>,
}

/// Why an upstream is not connected, and when it is tried again.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub why: String,
    pub until: Instant,
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
        Self { name, demand, outbound: Mutex::default(), trouble: Mutex::default(), account }
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

    /// Why there is no connection, after an attempt that failed.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    /// Notes why there is none, or that there is one.
    pub(super) fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.trouble.lock() = trouble;
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

    pub(super) fn outbound(&self) -> MutexGuard<'_, Option<mpsc::Sender<OutboundFrame>>> {
        self.outbound.lock()
    }
}
