//! What a client has sent and is yet to be handled, in order.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use config::TenantLimits;
use wire::{Frame, Kind};

use crate::{
    delivery::{Budget, BudgetShare},
    metrics::TenantMetrics,
    rate::Bucket,
    sync::Mutex,
};

/// Bytes that may wait in one inbox besides the first message.
const INBOX_BYTES: usize = 1 << 20;
/// What a waiting message takes besides its payload.
const MESSAGE_OVERHEAD: usize = 128;

/// One client's messages; one task at a time empties it.
#[derive(Default)]
pub struct Inbox(Mutex<Queued>);

#[derive(Default)]
struct Queued {
    events: VecDeque<InboxEvent>,
    bytes: usize,
    /// A task is there to empty it.
    served: bool,
    /// Of a client that has sent something.
    sent: Option<Box<Sent>>,
}

/// What a client has sent of late.
#[derive(Default)]
struct Sent {
    messages: Bucket,
    bytes: Bucket,
}

/// How much each of a tenant's clients may send.
#[derive(Default)]
pub struct Sending {
    /// Messages that wait.
    queue: AtomicUsize,
    messages_per_second: AtomicUsize,
    bytes_per_second: AtomicUsize,
}

impl Sending {
    /// From now on.
    pub fn set(&self, limits: &TenantLimits) {
        self.queue.store(limits.client_queue, Ordering::Relaxed);
        self.messages_per_second.store(limits.client_messages_per_second, Ordering::Relaxed);
        self.bytes_per_second.store(limits.client_bytes_per_second, Ordering::Relaxed);
    }
}

pub enum InboxEvent {
    Message(Frame, BudgetShare),
    /// The last one.
    Gone,
}

/// Why a message is not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Too many of its client wait.
    Queue,
    /// Those of all clients take too many bytes.
    Backlog,
    /// Its client sends too often.
    Messages,
    /// Its client sends too much.
    Bytes,
}

impl Over {
    /// Counts the message, and the limit that it went over.
    pub fn count(self, metrics: &TenantMetrics) {
        metrics.message_dropped(self.reason());
        metrics.limited(self.limit(), 1);
    }

    /// The limit's key in the manifest.
    fn limit(self) -> &'static str {
        match self {
            Self::Queue => "client-queue",
            Self::Backlog => "client-backlog",
            Self::Messages => "client-messages-per-second",
            Self::Bytes => "client-bytes-per-second",
        }
    }

    /// The value of the metric's label `reason`.
    fn reason(self) -> &'static str {
        match self {
            Self::Queue | Self::Backlog => "queue",
            Self::Messages => "messages",
            Self::Bytes => "bytes",
        }
    }

    /// What the client is told.
    pub fn message(self) -> &'static str {
        match self {
            Self::Queue | Self::Backlog => "too many messages wait: this one is dropped",
            Self::Messages => "too many messages a second: this one is dropped",
            Self::Bytes => "too many bytes a second: this message is dropped",
        }
    }
}

impl Inbox {
    /// Counts a message, or one of the commands in it.
    pub fn one_more(&self, may: &Sending) -> Result<(), Over> {
        let sent = &mut self.0.lock().sent;
        let messages = &mut sent.get_or_insert_default().messages;
        let taken = messages.take(1, may.messages_per_second.load(Ordering::Relaxed), Instant::now());
        if taken { Ok(()) } else { Err(Over::Messages) }
    }

    /// Takes a message of a client that may send so much; what is refused is not copied. True: a task must come to empty
    /// the inbox.
    pub fn message(&self, kind: Kind, payload: &[u8], may: &Sending, budget: &Arc<Budget>) -> Result<bool, Over> {
        let mut waiting = self.0.lock();
        let sent = &mut waiting.sent.get_or_insert_default().bytes;
        if !sent.take(payload.len(), may.bytes_per_second.load(Ordering::Relaxed), Instant::now()) {
            return Err(Over::Bytes);
        }
        let bytes = payload.len() + MESSAGE_OVERHEAD;
        let crowded = waiting.events.len() >= may.queue.load(Ordering::Relaxed) || waiting.bytes + bytes > INBOX_BYTES;
        if crowded && !waiting.events.is_empty() {
            return Err(Over::Queue);
        }
        let share = budget.take(bytes).ok_or(Over::Backlog)?;
        waiting.bytes += bytes;
        let frame = Frame { kind, bytes: Bytes::copy_from_slice(payload) };
        Ok(waiting.push(InboxEvent::Message(frame, share)))
    }

    /// The client is gone; true as above.
    pub fn gone(&self) -> bool {
        self.0.lock().push(InboxEvent::Gone)
    }

    /// The next one; `None`: the task that asks is no longer there to empty the inbox.
    pub fn next(&self) -> Option<InboxEvent> {
        let mut waiting = self.0.lock();
        let event = waiting.events.pop_front();
        match &event {
            Some(InboxEvent::Message(frame, _)) => waiting.bytes -= frame.bytes.len() + MESSAGE_OVERHEAD,
            Some(InboxEvent::Gone) => {}
            None => waiting.served = false,
        }
        event
    }
}

impl Queued {
    fn push(&mut self, event: InboxEvent) -> bool {
        self.events.push_back(event);
        !std::mem::replace(&mut self.served, true)
    }
}
