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
    /// Asks for the frames to send first on a new connection. `None`: the filter's call failed.
    pub async fn open(&self, line: Line, handle: &Arc<Handle>) -> Option<Vec<Frame>> {
        let (answer, answered) = oneshot::channel();
        let connection = line.connection;
        let opening = Opening { line, handle: Arc::clone(handle), answer };
        {
            let mut state = self.0.state.lock();
            state.hurry = Some((Instant::now() + PATIENCE, connection));
            state.events.push_back(FilterEvent::Open(opening));
        }
        self.0.arrived.notify_one();
        answered.await.ok().flatten()
    }

    /// Takes the frames that have come on a connection. If there is no room they stay where they are.
    ///
    /// `Ok(Some(_))`: frames were dropped, for this reason.
    pub fn offer(&self, connection: u64, frames: &mut Vec<Frame>) -> Result<Option<NoRoom>, NoRoom> {
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
        match admitted {
            Ok(count) => self.0.arrived(count),
            // There is nothing older to drop.
            Err(why) if self.0.parts.overflow == Overflow::Drop => {
                self.leave_out(frames);
                return Ok(Some(why));
            }
            Err(why) => return Err(why),
        }
        Ok((dropped.overflow > 0).then_some(NoRoom::Filter))
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
        state.hurry = Some((Instant::now() + PATIENCE, u64::MAX));
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

/// How many frames were dropped.
#[derive(Default)]
struct Dropped {
    overflow: usize,
    superseded: usize,
}

impl Shared {
    /// Makes room for so many bytes and charges them.
    fn admit(&self, state: &mut QueueState, bytes: usize, dropped: &mut Dropped) -> Result<Charge, NoRoom> {
        let most = self.max_bytes.load(Ordering::Relaxed);
        let drops = self.parts.overflow == Overflow::Drop;
        // A single burst may be larger.
        let is_full = |state: &QueueState| state.bytes > 0 && state.bytes + bytes > most;
        if is_full(state) && drops {
            // Half of them, so that one gap is enough for a while.
            state.drop_oldest(most.saturating_sub(bytes).min(most / 2), dropped);
        }
        if is_full(state) {
            return Err(NoRoom::Filter);
        }
        let charge = || Charge::take(&self.parts.account, Part::Queues, bytes);
        if let Some(charge) = charge() {
            return Ok(charge);
        }
        if drops {
            state.drop_oldest(state.bytes / 2, dropped);
        }
        charge().filter(|_| drops).ok_or(NoRoom::Memory)
    }

    /// Tells the worker of frames.
    fn arrived(&self, frames: usize) {
        self.parts.waiting.inc_by(signed(frames));
        self.arrived.notify_one();
    }

    fn count(&self, dropped: &Dropped) {
        let overflow =
            ("overflow", dropped.overflow, "the filter is slower than the partner, so messages were dropped");
        let superseded = (
            "superseded",
            dropped.superseded,
            "the filter is slower than the partner, so messages of a connection that is gone were dropped",
        );
        for (reason, frames, what) in [overflow, superseded] {
            if frames > 0 {
                self.parts.waiting.dec_by(signed(frames));
                self.parts.metrics.dropped(reason, frames);
                self.parts.log.say(|| tracing::warn!(frames, "{what}"));
                self.freed.notify_one();
            }
        }
    }
}

impl QueueState {
    /// Returns how many frames these are.
    fn push(&mut self, connection: u64, frames: Vec<Frame>, charge: Charge) -> usize {
        let count = frames.len();
        self.bytes += size(&frames);
        self.events.push_back(FilterEvent::Frames { connection, frames, charge });
        count
    }

    fn next(&mut self) -> Option<FilterEvent> {
        let mut first = self.events.pop_front()?;
        if let FilterEvent::Frames { connection, frames, charge } = &mut first {
            let payload = |frames: &[Frame]| frames.iter().map(|frame| frame.bytes.len()).sum::<usize>();
            let mut bytes = payload(frames);
            while bytes < BATCH_BYTES
                && let Some(FilterEvent::Frames { connection: other, frames: more, .. }) = self.events.front()
                && other == connection
                && frames.len() + more.len() <= BATCH_FRAMES
                && let Some(FilterEvent::Frames { frames: more, charge: theirs, .. }) = self.events.pop_front()
            {
                bytes += payload(&more);
                frames.extend(more);
                charge.merge(theirs);
            }
            self.bytes -= size(frames);
        }
        Some(first)
    }

    /// Drops the frames of connections before this one. Their end has the gap.
    fn drop_before(&mut self, connection: u64, dropped: &mut Dropped) {
        let before =
            |event: &FilterEvent| matches!(event, FilterEvent::Frames { connection: of, .. } if *of < connection);
        let bytes = &mut self.bytes;
        self.events.retain(|event| {
            let goes = before(event);
            if let FilterEvent::Frames { frames, .. } = event
                && goes
            {
                dropped.superseded += frames.len();
                *bytes -= size(frames);
            }
            !goes
        });
    }

    /// Drops the oldest bursts until at most so many bytes are left, and leaves one gap in their place.
    fn drop_oldest(&mut self, most: usize, dropped: &mut Dropped) {
        let mut at = 0;
        while self.bytes > most
            && let Some(event) = self.events.get(at)
        {
            if let FilterEvent::Frames { frames, .. } = event {
                dropped.overflow += frames.len();
                self.bytes -= size(frames);
                let follows_gap =
                    at.checked_sub(1).is_some_and(|at| matches!(self.events.get(at), Some(FilterEvent::Gap)));
                if follows_gap {
                    self.events.remove(at);
                    continue;
                }
                // In its place.
                self.events.get_mut(at).into_iter().for_each(|event| *event = FilterEvent::Gap);
            }
            at += 1;
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
