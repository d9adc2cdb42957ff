//! One client of a tenant with a handler: what it has sent and is yet to be handled, in order.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;

use super::{Handler, actions};
use crate::{
    channel::{Frame, Kind},
    client::{ClientId, ErrorCode, Share, Step, raw},
};

/// Bytes that may wait in one inbox besides the first message.
const INBOX_BYTES: usize = 1 << 20;
/// What a waiting message takes besides its payload.
const MESSAGE_OVERHEAD: usize = 128;
/// Why a client is gone that never was in a shard.
const NEVER_CAME: &str = "handshake";

/// A client as its handler knows it.
pub struct Session {
    pub id: ClientId,
    pub identity: Option<String>,
    handler: Arc<Handler>,
    inbox: Mutex<Inbox>,
    /// Why it left.
    reason: OnceLock<&'static str>,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    bytes: usize,
    /// A task is there to empty it.
    served: bool,
}

enum Event {
    Message(Frame, Share),
    Gone,
}

/// A message over the limits: it is not handled.
#[derive(Debug)]
pub struct Full;

impl Session {
    pub(super) fn new(id: ClientId, identity: Option<String>, handler: Arc<Handler>) -> Arc<Self> {
        Arc::new(Self { id, identity, handler, inbox: Mutex::default(), reason: OnceLock::new() })
    }

    /// Takes a message to be handled after those before it.
    pub fn message(self: &Arc<Self>, kind: Kind, payload: &[u8]) -> Result<(), Full> {
        let guest = self.handler.guest();
        let mut inbox = self.inbox();
        let bytes = payload.len() + MESSAGE_OVERHEAD;
        let crowded = inbox.events.len() >= guest.tenant.limits.client_queue || inbox.bytes + bytes > INBOX_BYTES;
        if crowded && !inbox.events.is_empty() {
            return Err(Full);
        }
        let share = guest.tenant.terms.budget.take(bytes).ok_or(Full)?;
        inbox.bytes += bytes;
        guest.metrics.queue.inc();
        let frame = Frame { kind, bytes: Bytes::copy_from_slice(payload) };
        self.push(inbox, Event::Message(frame, share));
        Ok(())
    }

    /// Notes why the client leaves; the first reason counts.
    pub fn leaves(&self, reason: &'static str) {
        // An earlier reason stands.
        let _ = self.reason.set(reason);
    }

    fn push(self: &Arc<Self>, mut inbox: MutexGuard<'_, Inbox>, event: Event) {
        inbox.events.push_back(event);
        if !std::mem::replace(&mut inbox.served, true) {
            self.handler.tasks.spawn(Arc::clone(self).serve());
        }
    }

    /// Handles what there is.
    async fn serve(self: Arc<Self>) {
        while let Some(event) = self.next() {
            match event {
                Event::Message(frame, share) => self.handle(&frame, share).await,
                Event::Gone => {
                    let reason = self.reason.get().copied().unwrap_or(NEVER_CAME);
                    self.handler.on_disconnect(&self, reason).await;
                }
            }
        }
    }

    fn next(&self) -> Option<Event> {
        let mut inbox = self.inbox();
        let event = inbox.events.pop_front();
        match &event {
            Some(Event::Message(frame, _)) => {
                inbox.bytes -= frame.bytes.len() + MESSAGE_OVERHEAD;
                self.handler.guest().metrics.queue.dec();
            }
            Some(Event::Gone) => {}
            None => inbox.served = false,
        }
        event
    }

    async fn handle(&self, frame: &Frame, share: Share) {
        match self.handler.on_message(self, frame).await {
            Ok(made) => {
                // Replies may need the room.
                drop(share);
                actions::carry_out(&self.handler, self.id, made).await;
            }
            Err(_) => {
                self.handler.guest().metrics.lost.inc();
                let mut out = Vec::new();
                raw::error(ErrorCode::Internal as u32, "the message could not be handled", &mut out);
                self.handler.act(self.id, vec![Step::Send(out, share)]);
            }
        }
    }

    /// Every change is whole before the lock is given back.
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session whose client is there; its handler is told when this is dropped.
pub struct Joined(Arc<Session>);

impl Joined {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self(session)
    }
}

impl Deref for Joined {
    type Target = Arc<Session>;

    fn deref(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.push(self.0.inbox(), Event::Gone);
    }
}
