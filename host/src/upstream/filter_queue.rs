//! An upstream's way to its filter: a queue bounded in bytes, across connections.
//!
//! The connection puts in what it reads, and never waits here. The filter's worker takes out what one call is to get.
//! What came on a connection that is gone waits its turn only while nothing newer waits: once the next connection has
//! messages of its own, or has waited long to be opened, the rest is dropped.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use config::Overflow;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use wire::Frame;

use crate::{
    account::{Account, Charge, Part},
    metrics::UpstreamMetrics,
    sync::Mutex,
    upstream::{
        UpstreamLog,
        handle::{Handle, Line},
        state::Status,
    },
};

/// Bytes that a queued frame takes besides its payload.
const FRAME_OVERHEAD: usize = 64;
/// The most frames in one call.
const BATCH_FRAMES: usize = 256;
/// The most payload bytes in one call, unless a single burst has more.
const BATCH_BYTES: usize = 256 << 10;
/// How long a new connection, or an upstream that takes the place of another, waits for what came before. Many partners
/// close a connection that subscribes to nothing for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a filter is told, in order.
pub enum FilterEvent {
    Open(Opening),
    Frames {
        connection: u64,
        frames: Vec<Frame>,
        /// What they take in the queue.
        bytes: usize,
        /// What they take of the tenant's memory.
        charge: Charge,
    },
    /// Messages are missing here.
    Gap,
    Close {
        connection: u64,
        reason: String,
    },
}

/// A connection that waits for what the filter wants to send first.
pub struct Opening {
    pub line: Line,
    handle: Arc<Handle>,
    /// What the upstream shows from the answer on.
    opened: Status,
    answer: oneshot::Sender<Option<Vec<Frame>>>,
}

impl Opening {
    /// Lets components send on the connection: after what the filter sends first.
    pub fn begin(&self) {
        if !self.answer.is_closed() {
            self.handle.open(self.line.clone());
        }
    }

    /// Gives the connection the frames to send first. `None`: the filter's call failed. `false`: the connection is
    /// gone.
    pub fn answer(self, frames: Option<Vec<Frame>>) -> bool {
        if frames.is_some() {
            // Before the filter gets a message, and may ask.
            self.handle.opened(self.line.connection, self.opened);
        }
        self.answer.send(frames).is_ok()
    }
}

/// Why frames were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The filter has as many bytes to do as it may.
    Filter,
    /// The tenant's memory is full.
    Memory,
}

/// What became of frames that were taken.
#[derive(Default)]
pub struct Taken {
    /// Why others were dropped. `None`: none were.
    pub dropped: Option<NoRoom>,
    /// Those. Freeing hundreds of thousands of messages takes long, so that is left to who has the time.
    pub garbage: Vec<Vec<Frame>>,
}

/// What a queue works with.
pub struct QueueParts {
    pub overflow: Overflow,
    pub account: Arc<Account>,
    pub metrics: Arc<UpstreamMetrics>,
    pub log: UpstreamLog,
    /// Counts the frames that wait.
    pub waiting: Gauge,
    pub max_bytes: usize,
}

/// The connection's end. When it is dropped, the worker's end has an end, too.
pub struct FilterQueue(Arc<Shared>);

/// The worker's end.
pub struct FilterInbox(Arc<Shared>);

struct Shared {
    parts: QueueParts,
    max_bytes: AtomicUsize,
    state: Mutex<QueueState>,
    /// For the worker: there is an event, or the end.
    arrived: Notify,
    /// For the connection: there is more room.
    freed: Notify,
}

#[derive(Default)]
struct QueueState {
    events: VecDeque<FilterEvent>,
    /// Bytes of the frames that wait.
    bytes: usize,
    /// The newest connection that has sent frames.
    newest: u64,
    /// When what came before this connection is to be dropped.
    hurry: Option<(Instant, u64)>,
    /// Whether the connection's end is gone.
    ended: bool,
}

pub fn filter_queue(parts: QueueParts) -> (FilterQueue, FilterInbox) {
    let shared = Arc::new(Shared {
        max_bytes: AtomicUsize::new(parts.max_bytes),
        parts,
        state: Mutex::default(),
        arrived: Notify::new(),
        freed: Notify::new(),
    });
    (FilterQueue(Arc::clone(&shared)), FilterInbox(shared))
}

impl FilterQueue {
    /// Asks for the frames to send first on a new connection, before anything that has come on it. The answer is
    /// `None` if the filter's call failed.
    pub fn open(
        &self,
        line: Line,
        handle: &Arc<Handle>,
        opened: Status,
    ) -> impl Future<Output = Option<Vec<Frame>>> + use<> {
        let (answer, answered) = oneshot::channel();
        let connection = line.connection;
        let opening = Opening { line, handle: Arc::clone(handle), opened, answer };
        {
            let mut state = self.0.state.lock();
            state.hurry_before(connection);
            state.events.push_back(FilterEvent::Open(opening));
        }
        self.0.arrived.notify_one();
        async { answered.await.ok().flatten() }
    }

    /// Takes the frames that have come on a connection. If there is no room they stay where they are.
    pub fn offer(&self, connection: u64, frames: &mut Vec<Frame>) -> Result<Taken, NoRoom> {
        let bytes = size(frames);
        let mut dropped = Dropped::default();
        let admitted = {
            let mut state = self.0.state.lock();
            if state.newest < connection {
                state.newest = connection;
                state.drop_before(connection, &mut dropped);
            }
            let admitted = self.0.admit(&mut state, bytes, &mut dropped);
            admitted.map(|charge| state.push(connection, std::mem::take(frames), charge))
        };
        self.0.count(&dropped);
        let mut taken = Taken { dropped: dropped.why, garbage: dropped.garbage };
        match admitted {
            Ok(count) => self.0.arrived(count),
            // Not even what was dropped has made room.
            Err(why) if self.0.parts.overflow == Overflow::Drop => {
                self.leave_out(frames);
                taken.dropped = Some(why);
            }
            Err(why) => return Err(why),
        }
        Ok(taken)
    }

    /// Takes the last frames of a connection, for which nobody can wait. If there is no memory they are dropped.
    pub fn force(&self, connection: u64, mut frames: Vec<Frame>) {
        match Charge::take(&self.0.parts.account, Part::Queues, size(&frames)) {
            Some(charge) => {
                let count = self.0.state.lock().push(connection, frames, charge);
                self.0.arrived(count);
            }
            None => self.leave_out(&mut frames),
        }
    }

    /// Drops frames that there is no memory for, and notes the gap.
    fn leave_out(&self, frames: &mut Vec<Frame>) {
        self.0.parts.metrics.dropped("memory", frames.len());
        frames.clear();
        let mut state = self.0.state.lock();
        if !matches!(state.events.back(), Some(FilterEvent::Gap)) {
            state.events.push_back(FilterEvent::Gap);
        }
        drop(state);
        self.0.arrived.notify_one();
    }

    /// Returns when there may be more room.
    pub async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// Tells the filter that a connection is lost.
    pub fn close(&self, connection: u64, reason: String) {
        self.0.state.lock().events.push_back(FilterEvent::Close { connection, reason });
        self.0.arrived.notify_one();
    }
}

impl Drop for FilterQueue {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        // Another upstream may wait for this one's filter.
        state.hurry_before(u64::MAX);
        drop(state);
        self.0.arrived.notify_one();
    }
}

impl FilterInbox {
    /// Returns the next event. What has queued up of one connection's frames comes together, as much as one call may
    /// have. It may be cancelled without loss. `None`: there will be no more.
    pub async fn next(&self) -> Option<FilterEvent> {
        loop {
            let mut dropped = Dropped::default();
            let (next, ended) = {
                let mut state = self.0.state.lock();
                if let Some((at, connection)) = state.hurry
                    && Instant::now() >= at
                {
                    state.hurry = None;
                    state.drop_before(connection, &mut dropped);
                }
                (state.next(), state.ended)
            };
            self.0.count(&dropped);
            if let Some(FilterEvent::Frames { frames, .. }) = &next {
                self.0.parts.waiting.dec_by(signed(frames.len()));
                self.0.freed.notify_one();
            }
            if next.is_some() || ended {
                return next;
            }
            self.0.arrived.notified().await;
        }
    }

    /// Changes how many bytes may wait.
    pub fn set_max_bytes(&self, bytes: usize) {
        self.0.max_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Frames that were dropped.
#[derive(Default)]
struct Dropped {
    overflow: usize,
    superseded: usize,
    /// Why `overflow` was.
    why: Option<NoRoom>,
    garbage: Vec<Vec<Frame>>,
}

impl Shared {
    /// Makes room for this number of bytes, and charges them.
    fn admit(&self, state: &mut QueueState, bytes: usize, dropped: &mut Dropped) -> Result<Charge, NoRoom> {
        let most = self.max_bytes.load(Ordering::Relaxed);
        let drops = self.parts.overflow == Overflow::Drop;
        // A single burst may be larger.
        let is_full = |state: &QueueState| state.bytes > 0 && state.bytes + bytes > most;
        if is_full(state) && drops {
            // Half of them, so that one gap is enough for a while.
            state.drop_oldest(most.saturating_sub(bytes).min(most / 2), NoRoom::Filter, dropped);
        }
        if is_full(state) {
            return Err(NoRoom::Filter);
        }
        let charge = || Charge::take(&self.parts.account, Part::Queues, bytes);
        if let Some(charge) = charge() {
            return Ok(charge);
        }
        if drops {
            state.drop_oldest(state.bytes / 2, NoRoom::Memory, dropped);
        }
        charge().filter(|_| drops).ok_or(NoRoom::Memory)
    }

    /// Tells the worker of frames.
    fn arrived(&self, frames: usize) {
        self.parts.waiting.inc_by(signed(frames));
        self.arrived.notify_one();
    }

    fn count(&self, dropped: &Dropped) {
        for (reason, frames) in [("overflow", dropped.overflow), ("superseded", dropped.superseded)] {
            if frames > 0 {
                self.parts.waiting.dec_by(signed(frames));
                self.parts.metrics.dropped(reason, frames);
                self.freed.notify_one();
            }
        }
        if dropped.superseded > 0 {
            let frames = dropped.superseded;
            self.parts.log.say(|| {
                tracing::warn!(
                    frames,
                    "the filter is slower than the partner: dropped messages of a connection before"
                );
            });
        }
    }
}

impl QueueState {
    /// Returns how many frames these are. They join those before them, as far as one call may have them.
    fn push(&mut self, connection: u64, frames: Vec<Frame>, charge: Charge) -> usize {
        let (count, more) = (frames.len(), size(&frames));
        self.bytes += more;
        if let Some(FilterEvent::Frames { connection: last, frames: before, bytes, charge: all }) =
            self.events.back_mut()
            && *last == connection
            && *bytes < BATCH_BYTES
            && before.len() + count <= BATCH_FRAMES
        {
            before.extend(frames);
            *bytes += more;
            all.merge(charge);
        } else {
            self.events.push_back(FilterEvent::Frames { connection, frames, bytes: more, charge });
        }
        count
    }

    fn next(&mut self) -> Option<FilterEvent> {
        let next = self.events.pop_front()?;
        match &next {
            FilterEvent::Frames { bytes, .. } => self.bytes -= bytes,
            // It waits no longer.
            FilterEvent::Open(opening) if self.hurry.is_some_and(|(_, before)| before == opening.line.connection) => {
                self.hurry = None;
            }
            _ => {}
        }
        Some(next)
    }

    /// Has what came before this connection go once it has waited long. One that waits already goes on waiting.
    fn hurry_before(&mut self, connection: u64) {
        let at = Instant::now() + PATIENCE;
        let at = self.hurry.map_or(at, |(earlier, _)| earlier.min(at));
        self.hurry = Some((at, connection));
    }

    /// Drops the frames of connections before this one. Their end has the gap.
    fn drop_before(&mut self, connection: u64, dropped: &mut Dropped) {
        let older =
            |event: &FilterEvent| matches!(event, FilterEvent::Frames { connection: of, .. } if *of < connection);
        if !self.events.iter().any(older) {
            return;
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                FilterEvent::Frames { connection: of, frames, bytes, .. } if of < connection => {
                    dropped.superseded += frames.len();
                    self.bytes -= bytes;
                    dropped.garbage.push(frames);
                }
                other => self.events.push_back(other),
            }
        }
    }

    /// Drops the oldest frames until at most this number of bytes is left, and leaves one gap in their place.
    fn drop_oldest(&mut self, most: usize, why: NoRoom, dropped: &mut Dropped) {
        let mut kept = VecDeque::new();
        while self.bytes > most
            && let Some(event) = self.events.pop_front()
        {
            match event {
                FilterEvent::Frames { frames, bytes, .. } => {
                    dropped.overflow += frames.len();
                    dropped.why = Some(why);
                    self.bytes -= bytes;
                    dropped.garbage.push(frames);
                    if !matches!(kept.back(), Some(FilterEvent::Gap)) {
                        kept.push_back(FilterEvent::Gap);
                    }
                }
                FilterEvent::Gap if matches!(kept.back(), Some(FilterEvent::Gap)) => {}
                other => kept.push_back(other),
            }
        }
        for event in kept.into_iter().rev() {
            self.events.push_front(event);
        }
    }
}

/// What frames take in the queue.
fn size(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.bytes.len() + FRAME_OVERHEAD).sum()
}

/// Converts a number of frames for a gauge.
fn signed(frames: usize) -> i64 {
    i64::try_from(frames).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
