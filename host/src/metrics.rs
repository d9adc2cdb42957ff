//! Every metric, what it counts and where it is counted. Served at `/metrics` in the OpenMetrics text format, which
//! Prometheus reads.
//!
//! Labels are bounded by the configuration: tenants and upstreams have names in it, reasons are words of the code.
//! Channels are no label, their names are the guests' choice.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

/// A filter call takes microseconds; the last bounds show what nears its deadline. Seconds.
const CALL_SECONDS: [f64; 10] = [2e-6, 5e-6, 1e-5, 5e-5, 2e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantLabel {
    tenant: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantReason {
    tenant: Arc<str>,
    reason: &'static str,
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ScheduleLabel {
    tenant: Arc<str>,
    schedule: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ScheduleReason {
    tenant: Arc<str>,
    schedule: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

type Seconds = Family<UpstreamLabel, Histogram, fn() -> Histogram>;

/// The host's registry and its families.
pub struct Metrics {
    registry: Registry,
    upstream_up: Family<UpstreamLabel, Gauge>,
    upstream_connections: Family<UpstreamLabel, Counter>,
    upstream_failures: Family<UpstreamReason, Counter>,
    upstream_messages: Family<UpstreamLabel, Counter>,
    upstream_bytes: Family<UpstreamLabel, Counter>,
    filter_calls: Family<UpstreamLabel, Counter>,
    filter_seconds: Seconds,
    filter_failures: Family<UpstreamReason, Counter>,
    filter_lost: Family<UpstreamLabel, Counter>,
    job_calls: Family<ScheduleLabel, Counter>,
    job_seconds: Family<ScheduleLabel, Histogram, fn() -> Histogram>,
    job_failures: Family<ScheduleReason, Counter>,
    job_lost: Family<ScheduleLabel, Counter>,
    job_missed: Family<ScheduleLabel, Counter>,
    publications: Family<TenantLabel, Counter>,
    publications_refused: Family<TenantReason, Counter>,
    clients: Family<TenantLabel, Gauge>,
    clients_accepted: Family<TenantLabel, Counter>,
    clients_closed: Family<TenantReason, Counter>,
    handshakes_refused: Family<Reason, Counter>,
    deliveries: Family<TenantLabel, Counter>,
    client_messages_dropped: Family<TenantLabel, Counter>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("edge_relay");
        let r = &mut registry;
        Self {
            upstream_up: add(r, "upstream_up", "1 while the upstream is connected"),
            upstream_connections: add(r, "upstream_connections", "Connections opened to the upstream"),
            upstream_failures: add(r, "upstream_failures", "Connections lost or not opened, by reason"),
            upstream_messages: add(r, "upstream_messages", "Messages received from the upstream"),
            upstream_bytes: add(r, "upstream_bytes", "Payload bytes received from the upstream"),
            filter_calls: add(r, "filter_calls", "Calls of the filter that returned"),
            filter_seconds: register(
                r,
                "filter_call_seconds",
                "Time of the filter's calls that returned",
                Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)),
            ),
            filter_failures: add(r, "filter_failures", "Calls of the filter that broke, by reason"),
            filter_lost: add(r, "filter_lost_messages", "Upstream messages lost to a broken filter"),
            job_calls: add(r, "job_calls", "Calls of the job that returned"),
            job_seconds: register(
                r,
                "job_call_seconds",
                "Time of the job's calls that returned",
                Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)),
            ),
            job_failures: add(r, "job_failures", "Calls of the job that broke, by reason"),
            job_lost: add(r, "job_lost_ticks", "Ticks lost to a broken job"),
            job_missed: add(r, "job_missed_ticks", "Ticks left out since the call before was still under way"),
            publications: add(r, "publications", "Publications taken into channel logs"),
            publications_refused: add(r, "publications_refused", "Publications refused, by reason"),
            clients: add(r, "clients", "Clients connected now"),
            clients_accepted: add(r, "clients_accepted", "Clients whose handshake succeeded"),
            clients_closed: add(r, "clients_closed", "Clients gone, by reason"),
            handshakes_refused: add(r, "handshakes_refused", "Handshakes that led to no client, by reason"),
            deliveries: add(r, "deliveries", "Publications written whole to a client's socket"),
            client_messages_dropped: add(r, "client_messages_dropped", "Clients' messages that nothing handles"),
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
            client_messages_dropped: self.client_messages_dropped.get_or_create_owned(&label),
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
            messages: self.upstream_messages.get_or_create_owned(&label),
            bytes: self.upstream_bytes.get_or_create_owned(&label),
            filter_lost: self.filter_lost.get_or_create_owned(&label),
            tenant: Arc::clone(tenant),
            upstream: Arc::clone(upstream),
            all: Arc::clone(self),
        }
    }

    /// A schedule's own counters.
    pub fn schedule(self: &Arc<Self>, tenant: &Arc<str>, schedule: &Arc<str>) -> ScheduleMetrics {
        let label = ScheduleLabel { tenant: Arc::clone(tenant), schedule: Arc::clone(schedule) };
        let all = Arc::clone(self);
        ScheduleMetrics {
            missed: self.job_missed.get_or_create_owned(&label),
            lost: self.job_lost.get_or_create_owned(&label),
            calls: CallMetrics {
                calls: self.job_calls.get_or_create_owned(&label),
                seconds: self.job_seconds.get_or_create_owned(&label),
                failed: Box::new(move |reason| {
                    let ScheduleLabel { tenant, schedule } = label.clone();
                    all.job_failures.get_or_create(&ScheduleReason { tenant, schedule, reason }).inc();
                }),
            },
        }
    }

    /// A handshake that led to no client.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&Reason { reason }).inc();
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
    pub client_messages_dropped: Counter,
    tenant: Arc<str>,
    all: Arc<Metrics>,
}

impl TenantMetrics {
    /// A publication refused.
    pub fn refused(&self, reason: &'static str) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason };
        self.all.publications_refused.get_or_create(&label).inc();
    }

    /// A client gone.
    pub fn closed(&self, reason: &'static str) {
        let label = TenantReason { tenant: Arc::clone(&self.tenant), reason };
        self.all.clients_closed.get_or_create(&label).inc();
    }
}

/// What is counted of one guest's calls.
pub struct CallMetrics {
    pub calls: Counter,
    pub seconds: Histogram,
    /// Counts a call that broke, by reason.
    pub failed: Box<dyn Fn(&'static str) + Send + Sync>,
}

/// What is counted for one schedule of a job.
pub struct ScheduleMetrics {
    pub calls: CallMetrics,
    pub missed: Counter,
    pub lost: Counter,
}

/// What is counted for one upstream and its filter.
pub struct UpstreamMetrics {
    pub up: Gauge,
    pub connections: Counter,
    pub messages: Counter,
    pub bytes: Counter,
    pub filter_lost: Counter,
    tenant: Arc<str>,
    upstream: Arc<str>,
    all: Arc<Metrics>,
}

impl UpstreamMetrics {
    /// A connection lost or not opened.
    pub fn failed(&self, reason: &'static str) {
        self.all.upstream_failures.get_or_create(&self.label(reason)).inc();
    }

    /// The filter's calls.
    pub fn filter(&self) -> CallMetrics {
        let label = UpstreamLabel { tenant: Arc::clone(&self.tenant), upstream: Arc::clone(&self.upstream) };
        let all = Arc::clone(&self.all);
        CallMetrics {
            calls: all.filter_calls.get_or_create_owned(&label),
            seconds: all.filter_seconds.get_or_create_owned(&label),
            failed: Box::new(move |reason| {
                let UpstreamLabel { tenant, upstream } = label.clone();
                all.filter_failures.get_or_create(&UpstreamReason { tenant, upstream, reason }).inc();
            }),
        }
    }

    fn label(&self, reason: &'static str) -> UpstreamReason {
        UpstreamReason { tenant: Arc::clone(&self.tenant), upstream: Arc::clone(&self.upstream), reason }
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register(registry, name, help, M::default())
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
