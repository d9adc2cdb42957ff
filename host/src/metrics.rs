//! Every metric: its name, type, labels and help. Served at `/metrics` in the OpenMetrics text format, which Prometheus
//! reads.
//!
//! The configuration bounds the labels: it names tenants, upstreams and schedules, and reasons are words of the code.
//! Channels are no label, because guests choose their names.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

/// Bounds of the buckets, in seconds. A call usually takes microseconds; the last bounds show calls near their
/// deadline.
const CALL_SECONDS: [f64; 10] = [2e-6, 5e-6, 1e-5, 5e-5, 2e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Bounds of the buckets, in seconds. A small component takes tenths of a second, one with an interpreter many seconds.
const COMPILE_SECONDS: [f64; 8] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// A gauge of a number that need not be whole.
type FloatGauge = Gauge<f64, AtomicU64>;
/// The same of a counter.
pub type FloatCounter = Counter<f64, AtomicU64>;

/// Declares sets of labels.
macro_rules! labels {
    ($($(#[$doc:meta])* $set:ident { $($(#[$attribute:meta])? $label:ident: $type:ty),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct $set { $($(#[$attribute])? $label: $type),* }
    )*};
}

labels! {
    Reason { reason: &'static str }
    /// Where a component's code came from.
    Origin { origin: &'static str }
    TenantLabel { tenant: Arc<str> }
    TenantReason { tenant: Arc<str>, reason: &'static str }
    /// `limit` is its key in the manifest's `[limits]`, or names a constant of the code.
    TenantLimit { tenant: Arc<str>, limit: &'static str }
    TenantOutcome { tenant: Arc<str>, outcome: &'static str }
    TenantPart { tenant: Arc<str>, part: &'static str }
    /// `what` is a limit's key.
    TenantWhat { tenant: Arc<str>, what: &'static str }
    TenantDirection { tenant: Arc<str>, direction: &'static str }
    UpstreamLabel { tenant: Arc<str>, upstream: Arc<str> }
    UpstreamState { #[prometheus(flatten)] upstream: UpstreamLabel, state: &'static str }
    UpstreamReason { #[prometheus(flatten)] upstream: UpstreamLabel, reason: &'static str }
    /// `name` is what the component works on: a filter's upstream, a job's schedule, else the role again.
    GuestLabel { tenant: Arc<str>, role: &'static str, name: Arc<str> }
    GuestFailure { #[prometheus(flatten)] guest: GuestLabel, blame: &'static str, reason: &'static str }
}

/// The type of a metric, and a new one.
macro_rules! metric {
    (type $metric:ident) => { $metric };
    (type $metric:ident by $labels:ident) => { Family<$labels, $metric> };
    (new $metric:ident) => { $metric::default() };
    (new $metric:ident by $labels:ident) => { Family::default() };
    (new $metric:ident($bounds:ident)) => { $metric::new($bounds) };
    (new $metric:ident($bounds:ident) by $labels:ident) => { Family::new_with_constructor(|| $metric::new($bounds)) };
}

/// For each metric: its name, its type with a histogram's bounds, its labels and its help.
macro_rules! metrics {
    ($($visible:vis $name:ident: $metric:ident $(($bounds:ident))? $(by $labels:ident)?, $help:literal;)*) => {
        /// The registry, and every metric in it.
        pub struct Metrics {
            registry: Registry,
            $($visible $name: metric!(type $metric $(by $labels)?),)*
        }

        impl Metrics {
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix("edge_relay");
                Self {
                    $($name: register(
                        &mut registry,
                        stringify!($name),
                        $help,
                        metric!(new $metric $(($bounds))? $(by $labels)?),
                    ),)*
                    registry,
                }
            }
        }
    };
}

metrics! {
    upstream_state: Gauge by UpstreamState, "1 for the state that the upstream is in, 0 for the others";
    upstream_connections: Counter by UpstreamLabel, "Connections opened to the upstream";
    upstream_failures: Counter by UpstreamReason, "Connections lost or not opened, by reason";
    upstream_rests: Counter by UpstreamLabel, "Connections closed because no client needed them any more";
    upstream_dropped: Counter by UpstreamReason, "Messages dropped before a filter or a channel got them, by reason";
    upstream_unread_seconds: FloatCounter by UpstreamReason,
        "Time in which the upstream's socket was not read, by what was waited for";
    upstream_messages: Counter by UpstreamLabel, "Messages received from the upstream";
    upstream_bytes: Counter by UpstreamLabel, "Payload bytes received from the upstream";
    guest_calls: Counter by GuestLabel, "Calls of a component that returned";
    guest_call_seconds: Histogram(CALL_SECONDS) by GuestLabel, "Time of a component's calls that returned";
    guest_failures: Counter by GuestFailure, "Calls of a component that failed, by blame and reason";
    guest_lost: Counter by GuestLabel, "Messages, ticks, requests and notices of channels lost with such calls";
    guest_instances: Gauge by GuestLabel, "Instances of a component that there are now";
    guest_queue: Gauge by GuestLabel, "Upstream or client messages and requests that wait for a component";
    job_missed_ticks: Counter by GuestLabel, "Ticks left out since the call before was still under way";
    pub records_appended: Counter, "Rows appended: they are on disk";
    records_refused: Counter by Reason, "Rows not taken, by reason";
    pub records_waiting: Gauge, "Rows in the SQLite file: without MySQL all there are";
    pub outbox_oldest_seconds: FloatGauge, "Age of the oldest row that waits for MySQL";
    outbox_rows: Gauge by TenantLabel, "A tenant's rows in the SQLite file: without MySQL all there are";
    outbox_bytes: Gauge by TenantLabel,
        "Bytes of a tenant's rows in the SQLite file, dead letters and rows that are being written included";
    pub records_drained: Counter, "Rows moved to MySQL";
    pub records_dead_letters: Counter, "Rows that MySQL refused, put aside";
    pub records_drain_failures: Counter, "Tries to move rows to MySQL that failed";
    pub records_commit_seconds: Histogram(CALL_SECONDS), "Time of a commit of appends";
    publications: Counter by TenantLabel, "Publications taken into channel logs";
    publications_refused: Counter by TenantReason, "Publications refused, by reason";
    publications_unlisted: Counter by TenantLabel, "Publications on channels that the manifest does not list";
    clients: Gauge by TenantLabel, "Clients connected now";
    clients_accepted: Counter by TenantLabel, "Clients whose handshake succeeded";
    clients_closed: Counter by TenantReason, "Clients gone, by reason";
    handshakes_refused: Counter by Reason, "Handshakes that led to no client, by reason";
    api_refused: Counter by Reason, "API requests and connections that the host answered or closed, by reason";
    admin_refused: Counter by Reason, "Connections to the admin listener that were closed, by reason";
    deliveries: Counter by TenantLabel, "Publications written whole to a client's socket";
    client_messages_dropped: Counter by TenantReason, "Clients' messages not handled, by reason";
    client_replies: Counter by TenantLabel, "Batches of replies taken for clients";
    clients_lagged: Counter by TenantReason,
        "Times that a client fell off the end of a channel's log, by what was done: conflate, skip or close";
    epochs: Counter by TenantLabel, "Times that a channel began a new epoch: before it something may be missing";
    tenant_swaps: Counter by TenantOutcome, "Changed tenants taken into service, or refused, by outcome";
    components_loaded: Counter by Origin, "Components loaded, by where their code came from";
    components_refused: Counter by Reason, "Components that could not be loaded, by reason";
    component_compile_seconds: Histogram(COMPILE_SECONDS),
        "Time of compiling a component, also one that is then refused";
    code_cache_distrusted: Counter by Reason,
        "Times that the cache of compiled code, or an entry, was not trusted or not usable, by reason";
    code_cache_removed: Counter, "Entries of the cache of compiled code that made room for others";
    limit_refusals: Counter by TenantLimit,
        "Times that a limit of a tenant refused something, or made a component wait for an instance, by limit";
    tenant_memory_bytes: Gauge by TenantPart,
        "Memory that the host keeps for a tenant, by what it is for";
    tenant_processor_seconds: FloatCounter by TenantLabel,
        "Time for which processors have worked for a tenant: its calls, its upstreams, its clients";
    tenant_bytes: Counter by TenantDirection,
        "Bytes that were received (in) and sent (out) for a tenant: upstreams, clients, requests";
    tenant_throttled_seconds: FloatCounter by TenantWhat,
        "Time in which a tenant was held back, by the limit that it was over";
    outbound_requests: Counter by TenantOutcome,
        "HTTP requests of components: answered, denied, or how else they ended";
    pub tenants: Gauge, "Tenants in service now";
    pub tenants_refused: Gauge, "Tenants whose folder has what was refused, whether or not an earlier version runs";
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Declares the metrics of one set of labels. They are looked up once, so that counting takes no lock.
macro_rules! handles {
    ($(#[$doc:meta])* $name:ident by $labels:ident { $($field:ident: $metric:ident = $family:ident;)* }) => {
        $(#[$doc])*
        pub struct $name {
            $(pub $field: $metric,)*
            label: $labels,
            all: Arc<Metrics>,
        }

        impl $name {
            fn new(all: &Arc<Metrics>, label: $labels) -> Self {
                Self {
                    $($field: all.$family.get_or_create_owned(&label),)*
                    label,
                    all: Arc::clone(all),
                }
            }
        }
    };
}

handles! {
    /// The metrics of one tenant.
    TenantMetrics by TenantLabel {
        publications: Counter = publications;
        clients: Gauge = clients;
        clients_accepted: Counter = clients_accepted;
        deliveries: Counter = deliveries;
        client_replies: Counter = client_replies;
        epochs: Counter = epochs;
        processor_seconds: FloatCounter = tenant_processor_seconds;
    }
}

handles! {
    /// The metrics of one upstream.
    UpstreamMetrics by UpstreamLabel {
        connections: Counter = upstream_connections;
        rests: Counter = upstream_rests;
        messages: Counter = upstream_messages;
        bytes: Counter = upstream_bytes;
    }
}

handles! {
    /// The metrics of one component at work.
    GuestMetrics by GuestLabel {
        calls: Counter = guest_calls;
        seconds: Histogram = guest_call_seconds;
        lost: Counter = guest_lost;
        instances: Gauge = guest_instances;
        queue: Gauge = guest_queue;
    }
}

/// Who has to look into a call that failed. The three never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The guest answered, and the answer was no.
    GuestSaidNo,
    /// The guest trapped, or missed its deadline or its promises.
    GuestBroke,
    /// The host had no room for the call, or the system no memory for the host.
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

impl Metrics {
    pub fn tenant(self: &Arc<Self>, tenant: &Arc<str>) -> TenantMetrics {
        TenantMetrics::new(self, TenantLabel { tenant: Arc::clone(tenant) })
    }

    pub fn upstream(self: &Arc<Self>, tenant: &Arc<str>, upstream: &Arc<str>) -> UpstreamMetrics {
        UpstreamMetrics::new(self, UpstreamLabel { tenant: Arc::clone(tenant), upstream: Arc::clone(upstream) })
    }

    /// `name`: what the component works on.
    pub fn guest(self: &Arc<Self>, tenant: &Arc<str>, role: &'static str, name: &Arc<str>) -> Arc<GuestMetrics> {
        let label = GuestLabel { tenant: Arc::clone(tenant), role, name: Arc::clone(name) };
        Arc::new(GuestMetrics::new(self, label))
    }

    /// Counts the ticks of a schedule that were left out.
    pub fn missed_ticks(&self, tenant: &Arc<str>, role: &'static str, schedule: &Arc<str>) -> Counter {
        let label = GuestLabel { tenant: Arc::clone(tenant), role, name: Arc::clone(schedule) };
        self.job_missed_ticks.get_or_create_owned(&label)
    }

    pub fn code(self: &Arc<Self>) -> CodeMetrics {
        let loaded = |origin| self.components_loaded.get_or_create_owned(&Origin { origin });
        CodeMetrics {
            compiled: loaded("compiled"),
            cached: loaded("cached"),
            shared: loaded("shared"),
            seconds: self.component_compile_seconds.clone(),
            removed: self.code_cache_removed.clone(),
            all: Arc::clone(self),
        }
    }

    /// Counts a changed tenant that was taken into service, or refused.
    pub fn swapped(&self, tenant: &Arc<str>, taken: bool) {
        let outcome = if taken { "applied" } else { "refused" };
        self.tenant_swaps.get_or_create(&TenantOutcome { tenant: Arc::clone(tenant), outcome }).inc();
    }

    /// Counts a handshake that led to no client.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an API request that the host answered, or a connection that it closed.
    pub fn admin_refused(&self, reason: &'static str) {
        self.admin_refused.get_or_create(&Reason { reason }).inc();
    }

    pub fn api_refused(&self, reason: &'static str) {
        self.api_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts records that the store did not take.
    pub fn records_refused(&self, reason: &'static str, rows: usize) {
        self.records_refused.get_or_create(&Reason { reason }).inc_by(rows as u64);
    }

    /// Notes what a tenant has in the outbox.
    pub fn outbox(&self, tenant: &Arc<str>, rows: u64, bytes: u64) {
        let label = TenantLabel { tenant: Arc::clone(tenant) };
        for (gauge, count) in [(&self.outbox_rows, rows), (&self.outbox_bytes, bytes)] {
            gauge.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Writes the whole registry as text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl TenantMetrics {
    /// Counts what a limit has refused. It tells nobody.
    pub fn limited(&self, limit: &'static str, times: usize) {
        let label = TenantLimit { tenant: self.tenant(), limit };
        self.all.limit_refusals.get_or_create(&label).inc_by(times as u64);
    }

    /// Counts publications on channels that nobody can follow.
    pub fn unlisted(&self, publications: usize) {
        let label = TenantLabel { tenant: self.tenant() };
        self.all.publications_unlisted.get_or_create(&label).inc_by(publications as u64);
    }

    /// Counts publications that were refused.
    pub fn refused(&self, reason: &'static str, publications: usize) {
        self.all.publications_refused.get_or_create(&self.because(reason)).inc_by(publications as u64);
    }

    /// Counts a client's message that was not handled.
    pub fn message_dropped(&self, reason: &'static str) {
        self.all.client_messages_dropped.get_or_create(&self.because(reason)).inc();
    }

    /// Counts a client that has fallen off a channel's log. `policy` is what is done about it.
    pub fn lagged(&self, policy: &'static str) {
        self.all.clients_lagged.get_or_create(&self.because(policy)).inc();
    }

    /// Counts a component's HTTP request that has ended.
    pub fn requested(&self, outcome: &'static str) {
        self.all.outbound_requests.get_or_create(&TenantOutcome { tenant: self.tenant(), outcome }).inc();
    }

    /// Counts a client that has gone.
    pub fn closed(&self, reason: &'static str) {
        self.all.clients_closed.get_or_create(&self.because(reason)).inc();
    }

    /// The memory that a tenant has of one part.
    pub fn memory(&self, part: &'static str) -> Gauge {
        self.all.tenant_memory_bytes.get_or_create_owned(&TenantPart { tenant: self.tenant(), part })
    }

    /// The bytes that go in one direction: `in` or `out`.
    pub fn bytes(&self, direction: &'static str) -> Counter {
        self.all.tenant_bytes.get_or_create_owned(&TenantDirection { tenant: self.tenant(), direction })
    }

    /// The time in which a limit has held the tenant back.
    pub fn throttled(&self, limit: &'static str) -> FloatCounter {
        self.all.tenant_throttled_seconds.get_or_create_owned(&TenantWhat { tenant: self.tenant(), what: limit })
    }

    pub fn tenant_name(&self) -> &str {
        &self.label.tenant
    }

    fn because(&self, reason: &'static str) -> TenantReason {
        TenantReason { tenant: self.tenant(), reason }
    }

    pub fn tenant(&self) -> Arc<str> {
        Arc::clone(&self.label.tenant)
    }
}

impl UpstreamMetrics {
    /// Sets the metric of each state.
    pub fn set_state(&self, states: impl IntoIterator<Item = (&'static str, bool)>) {
        for (state, is) in states {
            let label = UpstreamState { upstream: self.label.clone(), state };
            self.all.upstream_state.get_or_create(&label).set(i64::from(is));
        }
    }

    /// Counts messages that were dropped.
    pub fn dropped(&self, reason: &'static str, messages: usize) {
        self.all.upstream_dropped.get_or_create(&self.because(reason)).inc_by(messages as u64);
    }

    /// Counts time in which it was not read.
    pub fn unread(&self, reason: &'static str, time: Duration) {
        self.all.upstream_unread_seconds.get_or_create(&self.because(reason)).inc_by(time.as_secs_f64());
    }

    fn because(&self, reason: &'static str) -> UpstreamReason {
        UpstreamReason { upstream: self.label.clone(), reason }
    }

    /// Counts a connection that was lost or not opened.
    pub fn failed(&self, reason: &'static str) {
        self.all.upstream_failures.get_or_create(&self.because(reason)).inc();
    }
}

impl GuestMetrics {
    /// Counts a call that failed.
    pub fn failed(&self, blame: Blame, reason: &'static str) {
        let label = GuestFailure { guest: self.label.clone(), blame: blame.label(), reason };
        self.all.guest_failures.get_or_create(&label).inc();
    }
}

/// The metrics of components' code.
pub struct CodeMetrics {
    /// A child process has compiled it.
    pub compiled: Counter,
    /// It was in the cache on disk.
    pub cached: Counter,
    /// It was in memory already.
    pub shared: Counter,
    pub seconds: Histogram,
    pub removed: Counter,
    all: Arc<Metrics>,
}

impl CodeMetrics {
    /// Counts a component that could not be loaded.
    pub fn refused(&self, reason: &'static str) {
        self.all.components_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts that the cache, or an entry in it, was not used.
    pub fn distrusted(&self, reason: &'static str) {
        self.all.code_cache_distrusted.get_or_create(&Reason { reason }).inc();
    }
}
