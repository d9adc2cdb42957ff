//! What others may know of an upstream, and how they reach its connection.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use wire::Frame;

use crate::{
    account::{Account, Charge, Part},
    metrics::UpstreamMetrics,
    sync::Mutex,
    upstream::state::{State, Status},
};

/// Largest frame of a component, in bytes: subscriptions are small.
pub const MAX_OUTBOUND: usize = 1 << 20;
/// Frames from components that wait to be sent, and as many that are to be first.
const OUTBOUND_FRAMES: usize = 256;

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
    status: Mutex<Status>,
    /// Whether the metric has the state: another upstream of the same name may have had it before.
    is_shown: AtomicBool,
    /// How many connections there were, also of an upstream whose place this one takes.
    connections: Arc<AtomicU64>,
    /// The way to the connection. `None`: there is none to send on.
    line: Mutex<Option<Line>>,
    expected: watch::Sender<Expected>,
    metrics: Arc<UpstreamMetrics>,
    account: Arc<Account>,
}

/// The way to one connection.
#[derive(Clone)]
pub struct Line {
    /// Which connection it is.
    pub connection: u64,
    /// What components want sent.
    pub frames: mpsc::Sender<OutboundFrame>,
    /// What they want sent before that.
    first: mpsc::Sender<OutboundFrame>,
    /// Why they want another connection.
    reconnect: mpsc::Sender<String>,
}

/// The connection's end of its line. What is left in it at the end is dropped.
pub struct Outbound {
    frames: mpsc::Receiver<OutboundFrame>,
    first: mpsc::Receiver<OutboundFrame>,
    reconnect: mpsc::Receiver<String>,
}

/// What a component wants of a connection.
pub enum Wish {
    Send(OutboundFrame),
    /// Another connection, for this reason.
    Reconnect(String),
}

/// How soon a message is expected, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// `None`: at no time.
    pub within: Option<Duration>,
    pub since: Instant,
    /// Whether a component says so, not the manifest.
    pub is_asked: bool,
}

/// On which connection frames are to be sent, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// `None`: on the one that there is.
    pub connection: Option<u64>,
    /// Before those that already wait.
    pub first: bool,
}

/// Why none of the frames were taken, or a wish was not.
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

impl Line {
    pub fn new(connection: u64) -> (Self, Outbound) {
        let (frames, frames_end) = mpsc::channel(OUTBOUND_FRAMES);
        let (first, first_end) = mpsc::channel(OUTBOUND_FRAMES);
        // One wish is enough.
        let (reconnect, reconnect_end) = mpsc::channel(1);
        let line = Self { connection, frames, first, reconnect };
        (line, Outbound { frames: frames_end, first: first_end, reconnect: reconnect_end })
    }
}

impl Outbound {
    /// Returns what is wanted next; frames only if they may be sent already. It may be cancelled without loss.
    pub async fn next(&mut self, sends: bool) -> Wish {
        tokio::select! {
            biased;
            Some(reason) = self.reconnect.recv() => Wish::Reconnect(reason),
            Some(frame) = self.first.recv(), if sends => Wish::Send(frame),
            Some(frame) = self.frames.recv(), if sends => Wish::Send(frame),
            // Nobody has the line any more.
            else => pending().await,
        }
    }
}

impl Handle {
    /// `data_timeout`: what the manifest says of it. `before`: that of an upstream whose place it takes.
    pub fn new(
        name: Arc<str>,
        data_timeout: Option<Duration>,
        before: Option<&Self>,
        metrics: Arc<UpstreamMetrics>,
        account: Arc<Account>,
    ) -> Self {
        let manifest = Expected { within: data_timeout, since: Instant::now(), is_asked: false };
        let asked = before.map(|before| *before.expected.borrow()).filter(|expected| expected.is_asked);
        Self {
            name,
            status: Mutex::new(Status::new(State::Connecting)),
            is_shown: AtomicBool::new(false),
            connections: before.map(|before| Arc::clone(&before.connections)).unwrap_or_default(),
            line: Mutex::default(),
            expected: watch::Sender::new(asked.unwrap_or(manifest)),
            metrics,
            account,
        }
    }

    /// What it is doing.
    ///
    /// Async for the day when another node has the connection, as are the functions below; here none ever waits.
    #[allow(clippy::unused_async)]
    pub async fn status(&self) -> Status {
        self.status_here()
    }

    /// What it is doing on this node.
    pub fn status_here(&self) -> Status {
        self.status.lock().clone()
    }

    /// Frames that wait to be sent.
    #[allow(clippy::unused_async)]
    pub async fn queued(&self) -> usize {
        let waiting = |queue: &mpsc::Sender<OutboundFrame>| queue.max_capacity() - queue.capacity();
        self.line.lock().as_ref().map_or(0, |line| waiting(&line.frames) + waiting(&line.first))
    }

    /// Queues frames for the partner, all or none.
    #[allow(clippy::unused_async)]
    pub async fn send(&self, frames: Vec<Frame>, options: SendOptions) -> Result<(), SendError> {
        if frames.iter().any(|frame| frame.bytes.len() > MAX_OUTBOUND) {
            return Err(SendError::TooLarge);
        }
        let frames: Option<Vec<_>> = frames.into_iter().map(|frame| OutboundFrame::new(frame, &self.account)).collect();
        let frames = frames.ok_or(SendError::Memory)?;
        let line = self.line.lock();
        let line = line.as_ref().filter(|line| options.connection.is_none_or(|number| number == line.connection));
        let Line { frames: queue, first, .. } = line.ok_or(SendError::Disconnected)?;
        let queue = if options.first { first } else { queue };
        let room = queue.try_reserve_many(frames.len()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => SendError::Full,
            mpsc::error::TrySendError::Closed(()) => SendError::Disconnected,
        })?;
        for (place, frame) in room.zip(frames) {
            place.send(frame);
        }
        Ok(())
    }

    /// Expects a message within this time from now on. `None`: expects none.
    #[allow(clippy::unused_async)]
    pub async fn expect(&self, within: Option<Duration>) {
        self.expected.send_replace(Expected { within, since: Instant::now(), is_asked: true });
    }

    /// Asks for another connection in the place of the one that there is.
    #[allow(clippy::unused_async)]
    pub async fn reconnect(&self, reason: String) -> Result<(), SendError> {
        let line = self.line.lock();
        let reconnect = &line.as_ref().ok_or(SendError::Disconnected)?.reconnect;
        match reconnect.try_send(reason) {
            // It was asked for already.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SendError::Disconnected),
        }
    }

    /// The number of a connection that was just opened.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What is expected now, and what will be.
    pub(super) fn expected(&self) -> watch::Receiver<Expected> {
        self.expected.subscribe()
    }

    pub(super) fn set(&self, status: Status) {
        let mut now = self.status.lock();
        if now.state != status.state || !self.is_shown.swap(true, Ordering::Relaxed) {
            self.show(Some(status.state));
        }
        *now = status;
    }

    /// Shows that the upstream whose place it takes has to end first.
    pub fn waits_for_the_one_before(&self) {
        self.set_reason(Some("the upstream before it has to end first".into()));
    }

    /// Changes what there is to say of the connection that there is.
    pub(super) fn set_reason(&self, reason: Option<String>) {
        self.status.lock().reason = reason;
    }

    /// Shows that nothing runs any more.
    pub(super) fn ended(&self) {
        self.show(None);
    }

    fn show(&self, now: Option<State>) {
        self.metrics.set_state(State::ALL.map(|state| (state.name(), now == Some(state))));
    }

    /// Takes frames for a connection from now on.
    pub(super) fn open(&self, line: Line) {
        *self.line.lock() = Some(line);
    }

    /// Shows a connection as open, if it takes frames still.
    pub(super) fn opened(&self, connection: u64, status: Status) {
        let line = self.line.lock();
        if line.as_ref().is_some_and(|line| line.connection == connection) {
            self.set(status);
        }
    }

    /// Takes no more frames for a connection.
    pub(super) fn close(&self) {
        *self.line.lock() = None;
    }
}
