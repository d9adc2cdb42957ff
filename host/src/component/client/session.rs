//! One client of a tenant with a handler: what it has sent and is yet to be handled, in order.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::{Handler, Meaning, actions, actions::Asked};
use crate::{
    channel::{Frame, Kind},
    client::{ClientId, Compression, ErrorCode, Event, Inbox, Over, Share, Step, raw},
};

/// Why a client is gone that never was in a shard.
const NEVER_CAME: &str = "handshake";

/// A client as its handler knows it.
pub struct Session {
    pub id: ClientId,
    pub identity: Option<String>,
    pub compression: Option<Compression>,
    handler: Arc<Handler>,
    inbox: Inbox,
    /// Why it left.
    reason: OnceLock<&'static str>,
}

impl Session {
    pub(super) fn new(
        id: ClientId,
        identity: Option<String>,
        handler: Arc<Handler>,
        compression: Option<Compression>,
    ) -> Arc<Self> {
        Arc::new(Self { id, identity, compression, handler, inbox: Inbox::default(), reason: OnceLock::new() })
    }

    /// Takes a message to be handled after those before it.
    pub fn message(self: &Arc<Self>, kind: Kind, payload: &[u8]) -> Result<(), Over> {
        let terms = &self.handler.tenant.terms;
        self.inbox.one_more(&terms.sending)?;
        let to_be_served = self.inbox.message(kind, payload, &terms.sending, &terms.budget)?;
        self.handler.metrics.queue.inc();
        if to_be_served {
            self.handler.tasks.spawn(Arc::clone(self).serve());
        }
        Ok(())
    }

    /// Notes why the client leaves; the first reason counts.
    pub fn leaves(&self, reason: &'static str) {
        // An earlier reason stands.
        let _ = self.reason.set(reason);
    }

    /// Handles what there is.
    async fn serve(self: Arc<Self>) {
        while let Some(event) = self.inbox.next() {
            match event {
                Event::Message(frame, share) => {
                    self.handler.metrics.queue.dec();
                    self.handle(&frame, share).await;
                }
                Event::Gone => {
                    let reason = self.reason.get().copied().unwrap_or(NEVER_CAME);
                    self.handler.on_disconnect(&self, reason).await;
                }
            }
        }
    }

    async fn handle(&self, frame: &Frame, share: Share) {
        match self.handler.on_message(self, Meaning::Message, frame).await {
            Ok(made) => {
                // Replies may need the room.
                drop(share);
                actions::carry_out(&self.handler, self, Asked::Message, made).await;
            }
            Err(_) => {
                self.handler.metrics.lost.inc();
                let mut out = Vec::new();
                raw::error(ErrorCode::Internal as u32, "the message could not be handled", &mut out);
                self.handler.act(self.id, vec![Step::Send(out, share)]);
            }
        }
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
        if self.0.inbox.gone() {
            self.0.handler.tasks.spawn(Arc::clone(&self.0).serve());
        }
    }
}
