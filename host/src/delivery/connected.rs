//! A client that counts as connected, and whom it talks to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use wire::Kind;

use crate::delivery::{address_limit::ClientSource, id::ClientId, inbox::Over, limits::ClientLimits};

/// Takes what a client says. It is dropped when the client is gone.
pub trait Recipient: Send + Sync {
    /// The id by which the tenant's code knows the client.
    fn id(&self) -> ClientId;

    /// Takes a message, to be handled after those before it. Called by the shard: it must not wait.
    fn message(&self, kind: Kind, payload: &[u8]) -> Result<(), Over>;

    /// Notes why the client leaves; the first reason counts.
    fn leaves(&self, reason: &'static str);

    /// The pings of the client's own protocol; `None`: it has none, and WebSocket pings serve.
    fn pings(&self) -> Option<&Pings> {
        None
    }
}

/// When a client that waits for pings of its own protocol was last pinged, on its shard's clock of milliseconds.
#[derive(Debug, Default)]
pub struct Pings {
    begun: AtomicBool,
    last: AtomicU32,
}

impl Pings {
    /// The client waits for pings from this time on.
    pub fn begin(&self, now: u32) {
        self.note(now);
        self.begun.store(true, Ordering::Relaxed);
    }

    pub fn have_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Milliseconds since the last one.
    pub fn since(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last.load(Ordering::Relaxed))
    }

    /// The client is pinged now.
    pub fn note(&self, now: u32) {
        self.last.store(now, Ordering::Relaxed);
    }
}

/// A client that counts as connected until this is dropped.
pub struct Connected {
    source: Arc<ClientSource>,
    /// `None`: nobody takes what it says.
    pub recipient: Option<Box<dyn Recipient>>,
}

impl Connected {
    pub fn new(source: Arc<ClientSource>, recipient: Option<Box<dyn Recipient>>) -> Self {
        let client_limits = &source.client_limits;
        client_limits.count_one_more();
        Self { source, recipient }
    }

    pub fn client_limits(&self) -> &Arc<ClientLimits> {
        &self.source.client_limits
    }

    /// The id by which the tenant's code knows the client, if any of it does.
    pub fn id(&self) -> Option<ClientId> {
        self.recipient.as_ref().map(|recipient| recipient.id())
    }

    /// The pings of the client's own protocol, if it has some.
    pub fn pings(&self) -> Option<&Pings> {
        self.recipient.as_ref()?.pings()
    }

    /// Counts that the client leaves; its handler is told the reason when it is gone.
    pub fn leaves(&self, reason: &'static str) {
        self.client_limits().metrics.closed(reason);
        if let Some(recipient) = &self.recipient {
            recipient.leaves(reason);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.client_limits().count_one_less();
    }
}
