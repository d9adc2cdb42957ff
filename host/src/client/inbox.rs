//! What a client has sent and is yet to be handled, in order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{Budget, Share};
use crate::channel::{Frame, Kind};

/// Bytes that may wait in one inbox besides the first message.
const INBOX_BYTES: usize = 1 << 20;
/// What a waiting message takes besides its payload.
const MESSAGE_OVERHEAD: usize = 128;

/// One client's messages; one task at a time empties it.
#[derive(Default)]
pub struct Inbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    events: VecDeque<Event>,
    bytes: usize,
    /// A task is there to empty it.
    served: bool,
}

pub enum Event {
    Message(Frame, Share),
    /// The last one.
    Gone,
}

/// A message over the limits: it is not handled.
#[derive(Debug)]
pub struct Full;

impl Inbox {
    /// Takes a message, one of at most `limit`. True: a task must come to empty the inbox.
    pub fn message(&self, kind: Kind, payload: &[u8], limit: usize, budget: &Arc<Budget>) -> Result<bool, Full> {
        let mut waiting = self.lock();
        let bytes = payload.len() + MESSAGE_OVERHEAD;
        let crowded = waiting.events.len() >= limit || waiting.bytes + bytes > INBOX_BYTES;
        if crowded && !waiting.events.is_empty() {
            return Err(Full);
        }
        let share = budget.take(bytes).ok_or(Full)?;
        waiting.bytes += bytes;
        let frame = Frame { kind, bytes: Bytes::copy_from_slice(payload) };
        Ok(waiting.push(Event::Message(frame, share)))
    }

    /// The client is gone; true as above.
    pub fn gone(&self) -> bool {
        self.lock().push(Event::Gone)
    }

    /// The next one; `None`: the task that asks is no longer there to empty the inbox.
    pub fn next(&self) -> Option<Event> {
        let mut waiting = self.lock();
        let event = waiting.events.pop_front();
        match &event {
            Some(Event::Message(frame, _)) => waiting.bytes -= frame.bytes.len() + MESSAGE_OVERHEAD,
            Some(Event::Gone) => {}
            None => waiting.served = false,
        }
        event
    }

    /// Every change is whole before the lock is given back.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn push(&mut self, event: Event) -> bool {
        self.events.push_back(event);
        !std::mem::replace(&mut self.served, true)
    }
}
