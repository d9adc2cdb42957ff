//! A connected client, and the recipient of what it sends.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use wire::Kind;

use crate::delivery::{address_limit::ClientSource, id::ClientId, inbox::LimitReached, limits::ClientLimits};

/// Takes what a client sends. Its shard lets go of it when the client is gone.
pub trait Recipient: Send + Sync {
    /// The id by which the tenant's code knows the client.
    fn id(&self) -> ClientId;

    /// Takes a message, to be handled after the earlier ones. The shard calls this, so it must not wait. `Err`: a limit
    /// is reached, and the message is dropped.
    fn message(self: Arc<Self>, kind: Kind, payload: &[u8]) -> Result<(), LimitReached>;

    /// Notes why the client leaves. The first reason counts.
    fn note_leaving(&self, reason: &'static str);

    /// The pings of the client's own protocol. `None`: it has none, and the shard sends WebSocket pings.
    fn pings(&self) -> Option<&Pings> {
        None
    }
}

/// Makes a client's recipient on the thread of its shard. Made during the handshake it would lie among the handshake's
/// memory, and keep whole pages of it: some 800 bytes a client after a crowd.
pub struct LaterRecipient {
    pub id: ClientId,
    pub make: Box<dyn FnOnce() -> Arc<dyn Recipient> + Send>,
}

/// When a client was last pinged in its own protocol, in milliseconds on its shard's clock.
#[derive(Debug, Default)]
pub struct Pings {
    started: AtomicBool,
    last: AtomicU32,
}

impl Pings {
    /// Notes that the client expects pings from now on.
    pub fn start(&self, now: u32) {
        self.record(now);
        self.started.store(true, Ordering::Relaxed);
    }

    /// Whether the client expects pings yet.
    pub fn have_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Milliseconds since the last ping.
    pub fn since(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last.load(Ordering::Relaxed))
    }

    /// Notes that the client is pinged now.
    pub fn record(&self, now: u32) {
        self.last.store(now, Ordering::Relaxed);
    }
}

/// A client that counts as connected until this is dropped.
pub struct Connected {
    source: Arc<ClientSource>,
    /// `None`: what the client sends is dropped.
    pub recipient: Option<Arc<dyn Recipient>>,
}

impl Connected {
    pub fn new(source: Arc<ClientSource>, recipient: Option<Arc<dyn Recipient>>) -> Self {
        let client_limits = &source.client_limits;
        client_limits.client_connected();
        Self { source, recipient }
    }

    pub fn client_limits(&self) -> &Arc<ClientLimits> {
        &self.source.client_limits
    }

    /// The id by which the tenant's code knows the client. `None`: none of the tenant's code does.
    pub fn id(&self) -> Option<ClientId> {
        self.recipient.as_ref().map(|recipient| recipient.id())
    }

    /// The pings of the client's own protocol, if it has any.
    pub fn pings(&self) -> Option<&Pings> {
        self.recipient.as_ref()?.pings()
    }

    /// Counts that the client leaves, and tells its recipient why.
    pub fn note_leaving(&self, reason: &'static str) {
        self.client_limits().metrics.closed(reason);
        if let Some(recipient) = &self.recipient {
            recipient.note_leaving(reason);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.client_limits().client_gone();
    }
}
