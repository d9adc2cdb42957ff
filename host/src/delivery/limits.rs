//! Limits and counters that all clients of a tenant share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use config::TenantLimits;

use crate::{
    account::Account,
    delivery::{budget::Budget, id::ShardTurn, inbox::SendLimits},
    demand::Demand,
    metrics::TenantMetrics,
    usage::Usage,
};

/// Limits and counters that all clients of a tenant share.
pub struct ClientLimits {
    pub metrics: Arc<TenantMetrics>,
    /// Largest message accepted, in bytes.
    pub max_message: AtomicUsize,
    /// What the tenant's clients send and are sent.
    pub usage: Arc<Usage>,
    /// The tenant's account, for what waits for its clients' sockets.
    pub account: Arc<Account>,
    /// The memory for messages that wait for the handler and replies that wait for sockets.
    pub budget: Arc<Budget>,
    /// The memory for what handlers want done, and the shards have not done yet.
    pub actions: Arc<Budget>,
    /// How many clients the whole host has.
    pub total: Arc<AtomicUsize>,
    /// How many clients the tenant has, and how many it may have.
    clients: AtomicUsize,
    max_clients: AtomicUsize,
    /// Says which shard gets the tenant's next client with an id.
    pub(super) shard_turn: ShardTurn,
    /// How much each client may send.
    pub send_limits: SendLimits,
    /// Is told of each client: some upstreams connect only while there are any.
    pub demand: Arc<Demand>,
    /// Whether the tenant has been removed. A client that was still in its handshake then must not stay.
    pub removed: AtomicBool,
}

impl ClientLimits {
    /// `total` counts the clients of the whole host.
    pub fn new(
        metrics: Arc<TenantMetrics>,
        limits: &TenantLimits,
        total: Arc<AtomicUsize>,
        demand: Arc<Demand>,
        account: Arc<Account>,
        usage: Arc<Usage>,
    ) -> Self {
        let client_limits = Self {
            metrics,
            usage,
            max_message: AtomicUsize::default(),
            budget: Budget::new(0, Arc::clone(&account)),
            actions: Budget::new(0, Arc::clone(&account)),
            account,
            total,
            clients: AtomicUsize::new(0),
            max_clients: AtomicUsize::default(),
            shard_turn: ShardTurn::default(),
            send_limits: SendLimits::default(),
            demand,
            removed: AtomicBool::new(false),
        };
        client_limits.set(limits);
        client_limits
    }

    /// Changes the limits. Clients that are connected stay.
    pub fn set(&self, limits: &TenantLimits) {
        self.max_message.store(limits.client_message, Ordering::Relaxed);
        self.max_clients.store(limits.clients, Ordering::Relaxed);
        self.budget.set_max(limits.client_backlog);
        self.actions.set_max(limits.client_backlog);
        self.send_limits.set(limits);
    }

    /// How many clients the tenant has.
    pub fn count(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Whether the tenant has as many clients as it may.
    pub fn is_full(&self) -> bool {
        self.clients.load(Ordering::Relaxed) >= self.max_clients.load(Ordering::Relaxed)
    }

    /// Counts a client that has connected.
    pub(super) fn client_connected(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.metrics.clients.inc();
        self.metrics.clients_accepted.inc();
        self.demand.client_came();
    }

    /// Counts a client that is gone.
    pub(super) fn client_gone(&self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.metrics.clients.dec();
        self.demand.client_went();
    }
}
