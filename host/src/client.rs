//! Clients: from an accepted connection to the last byte it is sent.
//!
//! hyper does the HTTP handshake on the I/O runtime (`listener`, `handshake`); then the bare socket moves to a
//! shard (`shard`), where a client is a row in a table: a cursor on each channel it follows, no task, no timer and no
//! buffer of its own while it is idle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{component::Joined, demand::Demand, metrics::TenantMetrics};

mod address;
mod budget;
pub mod deflate;
pub mod frame;
mod handshake;
mod history;
mod id;
mod kernel;
mod listener;
mod mailbox;
mod message;
mod queue;
pub mod raw;
mod refusal;
mod shard;

pub use address::client_address;
pub use budget::{Budget, Share};
pub use id::ClientId;
pub use listener::{Door, MAX_READS, Route, bind, run};
pub use queue::Step;
pub use raw::ErrorCode;
pub use shard::{Shards, Timing};

/// Most channels one client may follow.
const MAX_CHANNELS: usize = 64;

/// What all clients of a tenant have in common.
pub struct Terms {
    pub metrics: Arc<TenantMetrics>,
    /// Largest message accepted, in bytes.
    pub max_message: usize,
    /// Of messages that wait for the handler and replies that wait for sockets.
    pub budget: Arc<Budget>,
    /// Clients of the whole host.
    pub total: Arc<AtomicUsize>,
    /// Told of each client: some upstreams are there only for them.
    pub demand: Arc<Demand>,
}

/// A client that counts as connected until this is dropped.
pub struct Connected {
    terms: Arc<Terms>,
    /// With a handler: its end of the client.
    session: Option<Joined>,
}

impl Connected {
    pub fn new(terms: Arc<Terms>, session: Option<Joined>) -> Self {
        terms.total.fetch_add(1, Ordering::Relaxed);
        terms.metrics.clients.inc();
        terms.metrics.clients_accepted.inc();
        terms.demand.client_came();
        Self { terms, session }
    }

    pub fn terms(&self) -> &Arc<Terms> {
        &self.terms
    }

    pub fn session(&self) -> Option<&Joined> {
        self.session.as_ref()
    }

    /// Counts that the client leaves; its handler is told the reason when it is gone.
    pub fn leaves(&self, reason: &'static str) {
        self.terms.metrics.closed(reason);
        if let Some(session) = &self.session {
            session.leaves(reason);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.terms.total.fetch_sub(1, Ordering::Relaxed);
        self.terms.metrics.clients.dec();
        self.terms.demand.client_went();
    }
}
