//! One client of a tenant with a handler. Its messages are handled in order.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use wire::{Compression, Frame, Kind, centrifuge, raw};

use crate::{
    component::roles::client::{Handler, Meaning, actions, actions::ReplyMode},
    delivery::{BudgetShare, ClientId, Inbox, InboxEvent, LimitReached, Recipient, Step},
};

/// The reason for a client that left before it was in a shard.
const NEVER_CAME: &str = "handshake";

/// A client as its handler knows it.
pub struct ClientSession {
    pub id: ClientId,
    pub identity: Option<String>,
    pub compression: Option<Compression>,
    handler: Arc<Handler>,
    inbox: Inbox,
    /// Why it left. Unset while it is there.
    reason: OnceLock<&'static str>,
}

impl ClientSession {
    pub(super) fn new(
        id: ClientId,
        identity: Option<String>,
        handler: Arc<Handler>,
        compression: Option<Compression>,
    ) -> Arc<Self> {
        Arc::new(Self { id, identity, compression, handler, inbox: Inbox::default(), reason: OnceLock::new() })
    }

    /// Notes why the client leaves; the first reason counts.
    pub fn note_leaving(&self, reason: &'static str) {
        // An earlier reason stands.
        let _ = self.reason.set(reason);
    }

    /// Handles everything in the inbox.
    async fn serve(self: Arc<Self>) {
        while let Some(event) = self.inbox.next() {
            match event {
                InboxEvent::Message(frame, share) => {
                    self.handler.metrics.queue.dec();
                    self.handle(&frame, share).await;
                }
                InboxEvent::Gone => {
                    let reason = self.reason.get().copied().unwrap_or(NEVER_CAME);
                    self.handler.on_disconnect(&self, reason).await;
                }
            }
        }
    }

    async fn handle(&self, frame: &Frame, share: BudgetShare) {
        match self.handler.on_message(self, Meaning::Message, frame).await {
            Ok((made, until)) => {
                // Makes room for the replies.
                drop(share);
                actions::carry_out(&self.handler, self, ReplyMode::Message, made, until).await;
            }
            Err(_) => {
                self.handler.metrics.lost.inc();
                let mut out = Vec::new();
                raw::error(centrifuge::Error::Internal.code(), "the message could not be handled", &mut out);
                self.handler.take_steps(self.id, vec![Step::Send(out, share)], None);
            }
        }
    }
}

/// A session whose client is there. When it is dropped, the handler is told that the client has left.
pub struct SessionGuard(Arc<ClientSession>);

impl SessionGuard {
    pub(super) fn new(session: Arc<ClientSession>) -> Self {
        Self(session)
    }
}

impl Deref for SessionGuard {
    type Target = Arc<ClientSession>;

    fn deref(&self) -> &Arc<ClientSession> {
        &self.0
    }
}

impl Recipient for SessionGuard {
    fn id(&self) -> ClientId {
        self.0.id
    }

    fn message(self: Arc<Self>, kind: Kind, payload: &[u8]) -> Result<(), LimitReached> {
        let client_limits = &self.handler.tenant.client_limits;
        self.inbox.count_message(&client_limits.send_limits)?;
        let needs_task = self.inbox.message(kind, payload, &client_limits.send_limits, &client_limits.budget)?;
        self.handler.metrics.queue.inc();
        if needs_task {
            self.handler.tasks.spawn(Arc::clone(&self.0).serve());
        }
        Ok(())
    }

    fn note_leaving(&self, reason: &'static str) {
        self.0.note_leaving(reason);
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if self.0.inbox.gone() {
            self.0.handler.tasks.spawn(Arc::clone(&self.0).serve());
        }
    }
}
