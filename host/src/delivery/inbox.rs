//! The messages of one client that wait for the tenant's code, in order.

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
    rate::TokenBucket,
    sync::Mutex,
};

/// How many bytes may wait in one inbox. The first message may be larger.
const INBOX_BYTES: usize = 1 << 20;
/// Bytes that a waiting message takes besides its payload.
const MESSAGE_OVERHEAD: usize = 128;

/// The messages of one client. One task at a time empties it.
#[derive(Default)]
pub struct Inbox(Mutex<Queued>);

#[derive(Default)]
struct Queued {
    events: VecDeque<InboxEvent>,
    bytes: usize,
    /// Whether a task is there to empty it.
    has_task: bool,
    rates: SendRates,
}

/// What a client has sent lately, for its limits per second.
#[derive(Default)]
struct SendRates {
    messages: TokenBucket,
    /// Messages over that, which are answered with an error.
    refused: TokenBucket,
    bytes: TokenBucket,
}

/// How much each client of a tenant may send.
#[derive(Default)]
pub struct SendLimits {
    /// How many messages may wait in one inbox.
    queue: AtomicUsize,
    messages_per_second: AtomicUsize,
    bytes_per_second: AtomicUsize,
}

impl SendLimits {
    /// Changes the limits, from now on.
    pub fn set(&self, limits: &TenantLimits) {
        self.queue.store(limits.client_queue, Ordering::Relaxed);
        self.messages_per_second.store(limits.client_messages_per_second, Ordering::Relaxed);
        self.bytes_per_second.store(limits.client_bytes_per_second, Ordering::Relaxed);
    }
}

pub enum InboxEvent {
    Message(Frame, BudgetShare),
    /// The client is gone. This is the last event.
    Gone,
}

/// The limit for which a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// Too many messages of the client wait.
    Queue,
    /// The waiting messages and replies of all the tenant's clients take too many bytes.
    Backlog,
    /// The client sends too many messages a second.
    Messages,
    /// The client sends too many bytes a second.
    Bytes,
}

impl LimitReached {
    /// Counts the message as dropped, and the limit as reached.
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

    /// The text of the error that the client is sent.
    pub fn message(self) -> &'static str {
        match self {
            Self::Queue | Self::Backlog => "too many messages wait",
            Self::Messages => "too many messages a second",
            Self::Bytes => "too many bytes a second",
        }
    }
}

impl Inbox {
    /// Counts a message, or one of several commands in it, against the limit per second.
    pub fn count_message(&self, limits: &SendLimits) -> Result<(), LimitReached> {
        let rates = &mut self.0.lock().rates;
        let taken = rates.messages.take(1, limits.messages_per_second.load(Ordering::Relaxed), Instant::now());
        if taken { Ok(()) } else { Err(LimitReached::Messages) }
    }

    /// Counts a message over the limit per second that is answered. `false`: there are as many of those, too.
    pub fn count_refusal(&self, limits: &SendLimits) -> bool {
        let rates = &mut self.0.lock().rates;
        rates.refused.take(1, limits.messages_per_second.load(Ordering::Relaxed), Instant::now())
    }

    /// Adds a message of a client that may send as much as `limits` says. A refused message is not copied. Returns
    /// whether the caller must start a task to empty the inbox.
    pub fn message(
        &self,
        kind: Kind,
        payload: &[u8],
        limits: &SendLimits,
        budget: &Arc<Budget>,
    ) -> Result<bool, LimitReached> {
        let mut queued = self.0.lock();
        let rate = &mut queued.rates.bytes;
        if !rate.take(payload.len(), limits.bytes_per_second.load(Ordering::Relaxed), Instant::now()) {
            return Err(LimitReached::Bytes);
        }
        let bytes = payload.len() + MESSAGE_OVERHEAD;
        let crowded = queued.events.len() >= limits.queue.load(Ordering::Relaxed) || queued.bytes + bytes > INBOX_BYTES;
        if crowded && !queued.events.is_empty() {
            return Err(LimitReached::Queue);
        }
        let share = budget.take(bytes).ok_or(LimitReached::Backlog)?;
        queued.bytes += bytes;
        let frame = Frame { kind, bytes: Bytes::copy_from_slice(payload) };
        Ok(queued.push(InboxEvent::Message(frame, share)))
    }

    /// Adds that the client is gone. Returns the same as [`Inbox::message`].
    pub fn gone(&self) -> bool {
        self.0.lock().push(InboxEvent::Gone)
    }

    /// Takes the next event. `None`: the inbox is empty, and the task that asked no longer counts as the one that
    /// empties it.
    pub fn next(&self) -> Option<InboxEvent> {
        let mut queued = self.0.lock();
        let event = queued.events.pop_front();
        match &event {
            Some(InboxEvent::Message(frame, _)) => queued.bytes -= frame.bytes.len() + MESSAGE_OVERHEAD,
            Some(InboxEvent::Gone) => {}
            None => {
                queued.has_task = false;
                // Few clients send at a time.
                queued.events = VecDeque::new();
            }
        }
        event
    }
}

impl Queued {
    fn push(&mut self, event: InboxEvent) -> bool {
        self.events.push_back(event);
        !std::mem::replace(&mut self.has_task, true)
    }
}
