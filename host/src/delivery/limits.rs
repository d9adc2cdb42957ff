//! What all clients of a tenant have in common.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use config::TenantLimits;

use crate::{
    delivery::{budget::Budget, inbox::Sending},
    demand::Demand,
    metrics::TenantMetrics,
};

/// What all clients of a tenant have in common.
pub struct ClientLimits {
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
    /// NotifyBy of each client: some upstreams are there only for them.
    pub demand: Arc<Demand>,
    /// The tenant is there no more, so that nobody who was on the way in stays.
    pub gone: AtomicBool,
}

impl ClientLimits {
    /// `total`: clients of the whole host.
    pub fn new(
        metrics: Arc<TenantMetrics>,
        limits: &TenantLimits,
        total: Arc<AtomicUsize>,
        demand: Arc<Demand>,
    ) -> Self {
        let client_limits = Self {
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
        client_limits.set(limits);
        client_limits
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

    /// A client is connected.
    pub(super) fn count_one_more(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.metrics.clients.inc();
        self.metrics.clients_accepted.inc();
        self.demand.client_came();
    }

    /// A client is gone.
    pub(super) fn count_one_less(&self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.metrics.clients.dec();
        self.demand.client_went();
    }
}
