//! Clients: from an accepted connection to the last byte it is sent.
//!
//! hyper does the HTTP handshake on the I/O runtime (`listener`, `handshake`); then the bare socket moves to a
//! shard (`shard`), where a client is a row in a table: a cursor on each channel it follows, no task, no timer and no
//! buffer of its own while it is idle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::metrics::TenantMetrics;

mod address;
pub mod frame;
mod handshake;
mod listener;
mod message;
mod queue;
mod shard;

pub use address::client_address;
pub use listener::{Door, bind, run};
pub use shard::{Shards, Timing};

/// What all clients of a tenant have in common.
pub struct Terms {
    pub metrics: Arc<TenantMetrics>,
    /// Largest message accepted, in bytes.
    pub max_message: usize,
    /// Clients of the whole host.
    pub total: Arc<AtomicUsize>,
}

/// A client that counts as connected until this is dropped.
pub struct Connected(Arc<Terms>);

impl Connected {
    pub fn new(terms: Arc<Terms>) -> Self {
        terms.total.fetch_add(1, Ordering::Relaxed);
        terms.metrics.clients.inc();
        terms.metrics.clients_accepted.inc();
        Self(terms)
    }

    pub fn terms(&self) -> &Terms {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.total.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.clients.dec();
    }
}
