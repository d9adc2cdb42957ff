//! Every metric, what it counts and where it is counted. Served at `/metrics` in the OpenMetrics text format, which
//! Prometheus reads.
//!
//! Labels are bounded by the configuration: tenants, upstreams and schedules have names in it, reasons are words of the code.
//! Channels are no label, their names are the guests' choice.

use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

/// A call takes microseconds as a rule; the last bounds show what nears its deadline. Seconds.
const CALL_SECONDS: [f64; 10] = [2e-6, 5e-6, 1e-5, 5e-5, 2e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// A small component takes tenths of a second, one with an interpreter in it many. Seconds.
const COMPILE_SECONDS: [f64; 8] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantLabel {
    tenant: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantReason {
    tenant: Arc<str>,
    reason: &'static str,
}

/// `limit`: its key in the manifest's `[limits]`, or a constant of the code.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantLimit {
    tenant: Arc<str>,
    limit: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantOutcome {
    tenant: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamLabel {
    tenant: Arc<str>,
    upstream: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamReason {
    tenant: Arc<str>,
    upstream: Arc<str>,
    reason: &'static str,
}

/// `name`: what the component works on, a filter's upstream or a job's schedule; the role again where it has but one.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GuestLabel {
    tenant: Arc<str>,
    role: &'static str,
    name: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GuestFailure {
    tenant: Arc<str>,
    role: &'static str,
    name: Arc<str>,
    blame: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Where a component's code came from.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Origin {
    origin: &'static str,
}

/// Whose doing it was that a call came to nothing. Never mixed: each has somebody else to look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The guest answered, and the answer was no.
    GuestSaidNo,
    /// The guest trapped, missed its deadline or its promises.
    GuestBroke,
    /// The host had no room for the call.
    HostFailed,
}

impl Blame {
    fn label(self) -> &'static str {
        match self {
            Self::GuestSaidNo => "guest_said_no",
            Self::GuestBroke => "guest_broke",
            Self::HostFailed => "host_failed",
        }
    }
}

type Seconds = Family<GuestLabel, Histogram, fn() -> Histogram>;

/// The host's registry and its families.
pub struct Metrics {
    registry: Registry,
    upstream_up: Family<UpstreamLabel, Gauge>,
    upstream_connections: Family<UpstreamLabel, Counter>,
    upstream_failures: Family<UpstreamReason, Counter>,
    upstream_rests: Family<UpstreamLabel, Counter>,
    upstream_messages: Family<UpstreamLabel, Counter>,
    upstream_bytes: Family<UpstreamLabel, Counter>,
    guest_calls: Family<GuestLabel, Counter>,
    guest_seconds: Seconds,
    guest_failures: Family<GuestFailure, Counter>,
    guest_lost: Family<GuestLabel, Counter>,
    guest_instances: Family<GuestLabel, Gauge>,
    guest_queue: Family<GuestLabel, Gauge>,
    job_missed: Family<GuestLabel, Counter>,
    records_appended: Counter,
    records_refused: Family<Reason, Counter>,
    records_waiting: Gauge,
    records_oldest_seconds: Gauge<f64, AtomicU64>,
    records_drained: Counter,
    records_dead_letters: Counter,
    records_drain_failures: Counter,
    records_commit_seconds: Histogram,
    publications: Family<TenantLabel, Counter>,
    publications_refused: Family<TenantReason, Counter>,
    clients: Family<TenantLabel, Gauge>,
    clients_accepted: Family<TenantLabel, Counter>,
    clients_closed: Family<TenantReason, Counter>,
    handshakes_refused: Family<Reason, Counter>,
    api_refused: Family<Reason, Counter>,
    deliveries: Family<TenantLabel, Counter>,
    client_messages_dropped: Family<TenantReason, Counter>,
    client_replies: Family<TenantLabel, Counter>,
    clients_lagged: Family<TenantReason, Counter>,
    epochs: Family<TenantLabel, Counter>,
    swaps: Family<TenantOutcome, Counter>,
    components_loaded: Family<Origin, Counter>,
    components_refused: Family<Reason, Counter>,
    compile_seconds: Histogram,
    cache_distrusted: Family<Reason, Counter>,
    cache_removed: Counter,
    limit_refusals: Family<TenantLimit, Counter>,
    outbound_requests: Family<TenantOutcome, Counter>,
    pub tenants: Gauge,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("edge_relay");
        let r = &mut registry;
        Self {
            upstream_up: add(r, "upstream_up", "1 while the upstream is connected"),
            upstream_connections: add(r, "upstream_connections", "Connections opened to the upstream"),
            upstream_failures: add(r, "upstream_failures", "Connections lost or not opened, by reason"),
            upstream_rests: add(r, "upstream_rests", "Connections closed in peace: no client needed them any more"),
            upstream_messages: add(r, "upstream_messages", "Messages received from the upstream"),
            upstream_bytes: add(r, "upstream_bytes", "Payload bytes received from the upstream"),
            guest_calls: add(r, "guest_calls", "Calls of a component that returned"),
            guest_seconds: register(
                r,
                "guest_call_seconds",
                "Time of a component's calls that returned",
                Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)),
            ),
            guest_failures: add(r, "guest_failures", "Calls of a component that came to nothing, by blame and reason"),
            guest_lost: add(r, "guest_lost", "Messages, ticks, requests and word of channels that such calls cost"),
            guest_instances: add(r, "guest_instances", "Instances of a component that there are now"),
            guest_queue: add(r, "guest_queue", "Upstream or client messages and requests that wait for a component"),
            job_missed: add(r, "job_missed_ticks", "Ticks left out since the call before was still under way"),
            records_appended: add(r, "records_appended", "Rows appended: they are on disk"),
            records_refused: add(r, "records_refused", "Rows not taken, by reason"),
            records_waiting: add(r, "records_waiting", "Rows in the SQLite file: without MySQL all there are"),
            records_oldest_seconds: add(r, "records_oldest_seconds", "Age of the oldest row that waits for MySQL"),
            records_drained: add(r, "records_drained", "Rows moved to MySQL"),
            records_dead_letters: add(r, "records_dead_letters", "Rows that MySQL refused, put aside"),
            records_drain_failures: add(r, "records_drain_failures", "Tries to move rows to MySQL that failed"),
            records_commit_seconds: register(
                r,
                "records_commit_seconds",
                "Time of a commit of appends",
                Histogram::new(CALL_SECONDS),
            ),
            publications: add(r, "publications", "Publications taken into channel logs"),
            publications_refused: add(r, "publications_refused", "Publications refused, by reason"),
            clients: add(r, "clients", "Clients connected now"),
            clients_accepted: add(r, "clients_accepted", "Clients whose handshake succeeded"),
            clients_closed: add(r, "clients_closed", "Clients gone, by reason"),
            handshakes_refused: add(r, "handshakes_refused", "Handshakes that led to no client, by reason"),
            api_refused: add(
                r,
                "api_refused",
                "API requests and connections that the host answered or closed, by reason",
            ),
            deliveries: add(r, "deliveries", "Publications written whole to a client's socket"),
            client_messages_dropped: add(r, "client_messages_dropped", "Clients' messages not handled, by reason"),
            client_replies: add(r, "client_replies", "Batches of replies taken for clients"),
            clients_lagged: add(
                r,
                "clients_lagged",
                "Times that a client fell off the end of a channel's log, by what was done: conflate, skip or close",
            ),
            epochs: add(r, "epochs", "Times that a channel began a new epoch: before it something may be missing"),
            swaps: add(r, "tenant_swaps", "Changed tenants taken into service, or refused, by outcome"),
            components_loaded: add(r, "components_loaded", "Components loaded, by where their code came from"),
            components_refused: add(r, "components_refused", "Components that could not be loaded, by reason"),
            compile_seconds: register(
                r,
                "component_compile_seconds",
                "Time of compiling a component, also one that is then refused",
                Histogram::new(COMPILE_SECONDS),
            ),
            cache_distrusted: add(
                r,
                "code_cache_distrusted",
                "Times that the cache of compiled code, or an entry, was not trusted or not usable, by reason",
            ),
            cache_removed: add(
                r,
                "code_cache_removed",
                "Entries of the cache of compiled code that made room for others",
            ),
            limit_refusals: add(
                r,
                "limit_refusals",
                "Times that a limit of a tenant refused something, or made a component wait for an instance, by limit",
            ),
            outbound_requests: add(
                r,
                "outbound_requests",
                "HTTP requests of components: answered, denied, or how else they ended",
            ),
            tenants: add(r, "tenants", "Tenants in service now"),
            registry,
        }
    }

    /// A tenant's own counters.
    pub fn tenant(self: &Arc<Self>, tenant: &Arc<str>) -> TenantMetrics {
        let label = TenantLabel { tenant: Arc::clone(tenant) };
        TenantMetrics {
            publications: self.publications.get_or_create_owned(&label),
            clients: self.clients.get_or_create_owned(&label),
            clients_accepted: self.clients_accepted.get_or_create_owned(&label),
            deliveries: self.deliveries.get_or_create_owned(&label),
            client_replies: self.client_replies.get_or_create_owned(&label),
            epochs: self.epochs.get_or_create_owned(&label),
            tenant: Arc::clone(tenant),
            all: Arc::clone(self),
        }
    }

    /// An upstream's own counters.
    pub fn upstream(self: &Arc<Self>, tenant: &Arc<str>, upstream: &Arc<str>) -> UpstreamMetrics {
        let label = UpstreamLabel { tenant: Arc::clone(tenant), upstream: Arc::clone(upstream) };
        UpstreamMetrics {
            up: self.upstream_up.get_or_create_owned(&label),
            connections: self.upstream_connections.get_or_create_owned(&label),
            rests: self.upstream_rests.get_or_create_owned(&label),
            messages: self.upstream_messages.get_or_create_owned(&label),
            bytes: self.upstream_bytes.get_or_create_owned(&label),
            tenant: Arc::clone(tenant),
            upstream: Arc::clone(upstream),
            all: Arc::clone(self),
        }
    }

    /// The counters of one component at work: `name` is what it works on.
    pub fn guest(self: &Arc<Self>, tenant: &Arc<str>, role: &'static str, name: &Arc<str>) -> Arc<GuestMetrics> {
        let label = GuestLabel { tenant: Arc::clone(tenant), role, name: Arc::clone(name) };
        Arc::new(GuestMetrics {
            calls: self.guest_calls.get_or_create_owned(&label),
            seconds: self.guest_seconds.get_or_create_owned(&label),
            lost: self.guest_lost.get_or_create_owned(&label),
            instances: self.guest_instances.get_or_create_owned(&label),
            queue: self.guest_queue.get_or_create_owned(&label),
            label,
            all: Arc::clone(self),
        })
    }

    /// Ticks of a schedule that were left out.
    pub fn missed_ticks(&self, tenant: &Arc<str>, role: &'static str, schedule: &Arc<str>) -> Counter {
        let label = GuestLabel { tenant: Arc::clone(tenant), role, name: Arc::clone(schedule) };
        self.job_missed.get_or_create_owned(&label)
    }

    /// The store's own counters.
    pub fn store(self: &Arc<Self>) -> StoreMetrics {
        StoreMetrics {
            appended: self.records_appended.clone(),
            waiting: self.records_waiting.clone(),
            oldest_seconds: self.records_oldest_seconds.clone(),
            drained: self.records_drained.clone(),
            dead_letters: self.records_dead_letters.clone(),
            drain_failures: self.records_drain_failures.clone(),
            commit_seconds: self.records_commit_seconds.clone(),
            all: Arc::clone(self),
        }
    }

    /// What is counted of components' code.
    pub fn code(self: &Arc<Self>) -> CodeMetrics {
        let loaded = |origin| self.components_loaded.get_or_create_owned(&Origin { origin });
        CodeMetrics {
            compiled: loaded("compiled"),
            cached: loaded("cached"),
            shared: loaded("shared"),
            seconds: self.compile_seconds.clone(),
            removed: self.cache_removed.clone(),
            all: Arc::clone(self),
        }
    }

    /// A changed tenant taken into service, or refused.
    pub fn swapped(&self, tenant: &Arc<str>, taken: bool) {
        let outcome = if taken { "applied" } else { "refused" };
        self.swaps.get_or_create(&TenantOutcome { tenant: Arc::clone(tenant), outcome }).inc();
    }

    /// A handshake that led to no client.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&Reason { reason }).inc();
    }

    /// An API request answered by the host, or a connection it closed.
    pub fn api_refused(&self, reason: &'static str) {
        self.api_refused.get_or_create(&Reason { reason }).inc();
    }

    /// The whole registry as text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What is counted for one tenant.
pub struct TenantMetrics {
    pub publications: Counter,
    pub clients: Gauge,
    pub clients_accepted: Counter,
    pub deliveries: Counter,
    pub client_replies: Counter,
    pub epochs: Counter,
    tenant: Arc<str>,
    all: Arc<Metrics>,
}

impl TenantMetrics {
    /// A limit has refused so many things: whoever asked is told by another way.
    pub fn limited(&self, limit: &'static str, times: usize) {
        let label = TenantLimit { tenant: Arc::clone(&self.tenant), limit };
        self.all.limit_refusals.get_or_create(&label).inc_by(times as u64);
    }

    /// Publications refused.
    pub fn refused(&self, reason: &'static str, publications: usize) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason };
        self.all.publications_refused.get_or_create(&label).inc_by(publications as u64);
    }

    /// A client's message that was not handled.
    pub fn message_dropped(&self, reason: &'static str) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason };
        self.all.client_messages_dropped.get_or_create(&label).inc();
    }

    /// A client that has fallen off a channel's log; `policy` is what is done.
    pub fn lagged(&self, policy: &'static str) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason: policy };
        self.all.clients_lagged.get_or_create(&label).inc();
    }

    /// A component's HTTP request that came to an answer, or to something else.
    pub fn requested(&self, outcome: &'static str) {
        let label = TenantOutcome { tenant: Arc::clone(&self.tenant), outcome };
        self.all.outbound_requests.get_or_create(&label).inc();
    }

    /// A client gone.
    pub fn closed(&self, reason: &'static str) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason };
        self.all.clients_closed.get_or_create(&label).inc();
    }
}

/// What is counted for one component at work.
pub struct GuestMetrics {
    pub calls: Counter,
    pub seconds: Histogram,
    pub lost: Counter,
    pub instances: Gauge,
    pub queue: Gauge,
    label: GuestLabel,
    all: Arc<Metrics>,
}

impl GuestMetrics {
    /// A call that came to nothing.
    pub fn failed(&self, blame: Blame, reason: &'static str) {
        let GuestLabel { tenant, role, name } = self.label.clone();
        let label = GuestFailure { tenant, role, name, blame: blame.label(), reason };
        self.all.guest_failures.get_or_create(&label).inc();
    }
}

/// What is counted of records.
pub struct StoreMetrics {
    pub appended: Counter,
    pub waiting: Gauge,
    pub oldest_seconds: Gauge<f64, AtomicU64>,
    pub drained: Counter,
    pub dead_letters: Counter,
    pub drain_failures: Counter,
    pub commit_seconds: Histogram,
    all: Arc<Metrics>,
}

impl StoreMetrics {
    /// Rows not taken.
    pub fn refused(&self, reason: &'static str, rows: usize) {
        self.all.records_refused.get_or_create(&Reason { reason }).inc_by(rows as u64);
    }
}

/// What is counted of components' code.
pub struct CodeMetrics {
    /// By a child.
    pub compiled: Counter,
    /// From disk.
    pub cached: Counter,
    /// In memory already.
    pub shared: Counter,
    pub seconds: Histogram,
    pub removed: Counter,
    all: Arc<Metrics>,
}

impl CodeMetrics {
    /// A component that could not be loaded.
    pub fn refused(&self, reason: &'static str) {
        self.all.components_refused.get_or_create(&Reason { reason }).inc();
    }

    /// The cache, or an entry of it, was not used.
    pub fn distrusted(&self, reason: &'static str) {
        self.all.cache_distrusted.get_or_create(&Reason { reason }).inc();
    }
}

/// What is counted for one upstream.
pub struct UpstreamMetrics {
    pub up: Gauge,
    pub connections: Counter,
    pub rests: Counter,
    pub messages: Counter,
    pub bytes: Counter,
    tenant: Arc<str>,
    upstream: Arc<str>,
    all: Arc<Metrics>,
}

impl UpstreamMetrics {
    /// A connection lost or not opened.
    pub fn failed(&self, reason: &'static str) {
        let label = UpstreamReason { tenant: Arc::clone(&self.tenant), upstream: Arc::clone(&self.upstream), reason };
        self.all.upstream_failures.get_or_create(&label).inc();
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register(registry, name, help, M::default())
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
