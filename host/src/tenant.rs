//! A tenant at run time: the unit of isolation.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
};

use crate::{
    channel::Channels,
    client::Terms,
    component::{self, Engine, FilterCode, Guest, Guests, Job, JobCode, Role},
    config::{ScheduleConfig, TenantConfig, TenantLimits},
    metrics::{Metrics, TenantMetrics},
    state::State,
    upstream::{self, Sink, Upstream},
};

/// All that a tenant's parts share: its clients, its guests, the listeners.
pub struct Tenant {
    pub name: Arc<str>,
    /// The path its clients connect to.
    pub path: String,
    pub channels: Arc<Channels>,
    pub terms: Arc<Terms>,
    pub upstreams: Vec<Arc<upstream::Handle>>,
    pub state: Arc<State>,
    /// What guests read through `wasi:config`.
    pub settings: Vec<(String, String)>,
    pub limits: TenantLimits,
    pub metrics: Arc<TenantMetrics>,
}

impl Tenant {
    pub fn upstream(&self, name: &str) -> Option<&Arc<upstream::Handle>> {
        self.upstreams.iter().find(|upstream| &*upstream.name == name)
    }
}

/// A tenant's code, checked and compiled: nothing of it runs yet.
#[derive(Default)]
pub struct Code {
    pub filter: Option<Arc<FilterCode>>,
    pub job: Option<Arc<JobCode>>,
}

impl Code {
    /// Loads what the manifest names; an error says which file and why.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Self, String> {
        Ok(Self {
            filter: load_role(config.filter.as_deref(), engine)?,
            job: load_role(config.job.as_deref(), engine)?,
        })
    }
}

/// Compiles the component for one role.
fn load_role<R: Role>(path: Option<&Path>, engine: &Arc<Engine>) -> Result<Option<Arc<component::Code<R>>>, String> {
    let Some(path) = path else { return Ok(None) };
    let code = engine.load(path).and_then(|component| component::Code::new(engine, &component));
    code.map(|code| Some(Arc::new(code)))
        .map_err(|error| format!("{}: components.{}: {error}", path.display(), R::NAME))
}

/// A tenant, and what is to run for it.
pub struct Started {
    pub tenant: Arc<Tenant>,
    pub upstreams: Vec<Upstream>,
    pub jobs: Vec<Job>,
}

/// Brings a tenant to life: its channels and state, its upstreams and jobs ready to run.
pub fn start(
    config: TenantConfig,
    code: &Code,
    guests: &mut Option<Guests>,
    metrics: &Arc<Metrics>,
    total: &Arc<AtomicUsize>,
) -> Started {
    let counts = Arc::new(metrics.tenant(&config.name));
    let (handles, outbound): (Vec<_>, Vec<_>) = config
        .upstreams
        .iter()
        .map(|upstream| upstream::Handle::new(Arc::clone(&upstream.name)))
        .map(|(handle, outbound)| (Arc::new(handle), outbound))
        .unzip();
    let terms =
        Terms { metrics: Arc::clone(&counts), max_message: config.limits.client_message, total: Arc::clone(total) };
    let tenant = Arc::new(Tenant {
        name: config.name,
        path: config.path,
        channels: Arc::new(Channels::new(config.channels, config.limits.logs, Arc::clone(&counts))),
        terms: Arc::new(terms),
        upstreams: handles.clone(),
        state: Arc::new(State::new(config.limits.state)),
        settings: config.settings,
        limits: config.limits,
        metrics: counts,
    });
    let mut upstreams = Vec::new();
    for ((config, handle), outbound) in config.upstreams.into_iter().zip(handles).zip(outbound) {
        let metrics = Arc::new(metrics.upstream(&tenant.name, &config.name));
        let sink = match (&code.filter, guests.as_mut()) {
            (Some(code), Some(guests)) => {
                let guest = Guest { tenant: Arc::clone(&tenant), name: Arc::clone(&config.name) };
                Sink::Filter(guests.filter(Arc::clone(code), guest, Arc::clone(&metrics)))
            }
            _ => Sink::Channel(Arc::clone(&tenant.channels)),
        };
        upstreams.push(Upstream { tenant: Arc::clone(&tenant.name), config, sink, metrics, handle, outbound });
    }
    let job = |schedule: ScheduleConfig| {
        let code = Arc::clone(code.job.as_ref()?);
        let guest = Guest { tenant: Arc::clone(&tenant), name: Arc::clone(&schedule.name) };
        let metrics = metrics.schedule(&tenant.name, &schedule.name);
        Some(Job { code, guest, schedule, metrics })
    };
    let jobs = config.schedules.into_iter().filter_map(job).collect();
    Started { tenant, upstreams, jobs }
}
