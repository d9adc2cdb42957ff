//! Clients: from an accepted connection to the last byte it is sent.
//!
//! There are three doors: a plain WebSocket (`raw`), server-sent events (`sse`) and the Centrifuge protocol
//! (`centrifuge`). hyper does the HTTP handshake on the I/O runtime (`listener`, `handshake`); then the bare socket moves to
//! a shard (`shard`), where a client is a row in a table: a cursor on each channel it follows, no task, no timer and no
//! buffer of its own while it is idle.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{component::Joined, config::TenantLimits, demand::Demand, metrics::TenantMetrics};

mod address;
mod admission;
mod budget;
pub mod centrifuge;
mod compression;
mod cors;
pub mod deflate;
mod door;
mod end;
pub mod frame;
mod handshake;
mod history;
mod id;
mod inbox;
mod kernel;
mod listener;
mod mailbox;
pub mod message;
mod queue;
pub mod raw;
mod refusal;
mod shard;
mod source;
pub mod sse;
mod steps;
mod upgrade;

pub use address::client_address;
pub use budget::{Budget, Share};
pub use compression::{Compression, SHARED_WINDOW_BITS, encode};
pub use door::{Door, MAX_READS};
pub use end::End;
pub use id::ClientId;
pub use inbox::{Event, Inbox, Over, Sending};
pub use listener::{bind, run};
pub use queue::{Follow, Step, Told};
pub use raw::ErrorCode;
pub use shard::{Shards, Timing};
pub use source::{Source, Sources};
pub use steps::Steps;

/// Most channels one client may follow.
const MAX_CHANNELS: usize = 64;

/// What all clients of a tenant have in common.
pub struct Terms {
    pub metrics: Arc<TenantMetrics>,
    /// Largest message accepted, in bytes.
    pub max_message: AtomicUsize,
    /// Of messages that wait for the handler and replies that wait for sockets.
    pub budget: Arc<Budget>,
    /// Clients of the whole host.
    pub total: Arc<AtomicUsize>,
    /// The tenant's own, now and at most.
    clients: AtomicUsize,
    max_clients: AtomicUsize,
    /// How much each may send.
    pub sending: Sending,
    /// Told of each client: some upstreams are there only for them.
    pub demand: Arc<Demand>,
    /// The tenant is there no more, so that nobody who was on the way in stays.
    pub gone: AtomicBool,
}

impl Terms {
    /// `total`: clients of the whole host.
    pub fn new(
        metrics: Arc<TenantMetrics>,
        limits: &TenantLimits,
        total: Arc<AtomicUsize>,
        demand: Arc<Demand>,
    ) -> Self {
        let terms = Self {
            metrics,
            max_message: AtomicUsize::default(),
            budget: Budget::new(0),
            total,
            clients: AtomicUsize::new(0),
            max_clients: AtomicUsize::default(),
            sending: Sending::default(),
            demand,
            gone: AtomicBool::new(false),
        };
        terms.set(limits);
        terms
    }

    /// From now on; clients that are there stay.
    pub fn set(&self, limits: &TenantLimits) {
        self.max_message.store(limits.client_message, Ordering::Relaxed);
        self.max_clients.store(limits.clients, Ordering::Relaxed);
        self.budget.set_max(limits.client_backlog);
        self.sending.set(limits);
    }

    /// Whether the tenant has as many clients as it may.
    pub fn is_full(&self) -> bool {
        self.clients.load(Ordering::Relaxed) >= self.max_clients.load(Ordering::Relaxed)
    }
}

/// A client that counts as connected until this is dropped.
pub struct Connected {
    source: Arc<Source>,
    pub voice: Voice,
}

/// Who hears what a client says.
pub enum Voice {
    /// Nobody.
    Silent,
    /// The tenant's handler.
    Handler(Joined),
    /// The client speaks the Centrifuge protocol.
    Centrifuge(Arc<centrifuge::Session>),
}

impl Connected {
    pub fn new(source: Arc<Source>, voice: Voice) -> Self {
        let terms = &source.terms;
        terms.total.fetch_add(1, Ordering::Relaxed);
        terms.clients.fetch_add(1, Ordering::Relaxed);
        terms.metrics.clients.inc();
        terms.metrics.clients_accepted.inc();
        terms.demand.client_came();
        Self { source, voice }
    }

    pub fn terms(&self) -> &Arc<Terms> {
        &self.source.terms
    }

    /// By which a tenant's code knows it.
    pub fn id(&self) -> Option<ClientId> {
        match &self.voice {
            Voice::Silent => None,
            Voice::Handler(session) => Some(session.id),
            Voice::Centrifuge(session) => Some(session.id),
        }
    }

    /// Counts that the client leaves; its handler is told the reason when it is gone.
    pub fn leaves(&self, reason: &'static str) {
        self.terms().metrics.closed(reason);
        match &self.voice {
            Voice::Silent => {}
            Voice::Handler(session) => session.leaves(reason),
            Voice::Centrifuge(session) => session.leaves(reason),
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let terms = self.terms();
        terms.total.fetch_sub(1, Ordering::Relaxed);
        terms.clients.fetch_sub(1, Ordering::Relaxed);
        terms.metrics.clients.dec();
        terms.demand.client_went();
    }
}
