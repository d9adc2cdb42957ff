//! A tenant at run time: the unit of isolation.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicUsize},
};

use crate::{
    channel::Channels,
    client::{Budget, Shards, Terms},
    component::{self, Api, ApiCode, ClientCode, Engine, FilterCode, Guest, Guests, Handler, Job, JobCode, Role},
    config::{ScheduleConfig, TenantConfig, TenantLimits, UpstreamConfig},
    metrics::{Metrics, TenantMetrics},
    state::State,
    store::Store,
    upstream::{self, Need, Sink, Upstream},
};

/// All that a tenant's parts share: its clients, its guests, the listeners.
pub struct Tenant {
    pub name: Arc<str>,
    /// The path its clients connect to.
    pub path: String,
    /// Origins whose pages may read channels over HTTP.
    pub cors: Vec<String>,
    pub channels: Arc<Channels>,
    pub terms: Arc<Terms>,
    /// Where its clients are.
    pub shards: Arc<Shards>,
    pub upstreams: Vec<Arc<upstream::Handle>>,
    pub state: Arc<State>,
    /// `None`: nobody on this host keeps records.
    pub store: Option<Arc<Store>>,
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
    pub client: Option<Arc<ClientCode>>,
    pub api: Option<Arc<ApiCode>>,
    pub job: Option<Arc<JobCode>>,
}

impl Code {
    /// Whether any component appends records or reads them.
    pub fn keeps_records(&self) -> bool {
        self.filter.as_ref().is_some_and(|code| code.keeps_records)
            || self.client.as_ref().is_some_and(|code| code.keeps_records)
            || self.api.as_ref().is_some_and(|code| code.keeps_records)
            || self.job.as_ref().is_some_and(|code| code.keeps_records)
    }

    /// Loads what the manifest names; an error says which file and why.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Self, String> {
        Ok(Self {
            filter: load_role(config.filter.as_deref(), engine)?,
            client: load_role(config.client.as_deref(), engine)?,
            api: load_role(config.api.as_ref().map(|api| api.file.as_path()), engine)?,
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
    pub handler: Option<Arc<Handler>>,
    pub api: Option<Arc<Api>>,
    pub jobs: Vec<Job>,
}

/// What all tenants share.
pub struct Shared<'h> {
    /// `None`: no tenant has code.
    pub guests: Option<&'h mut Guests>,
    pub metrics: &'h Arc<Metrics>,
    pub shards: &'h Arc<Shards>,
    pub store: Option<&'h Arc<Store>>,
    /// Clients of the whole host.
    pub total: &'h Arc<AtomicUsize>,
}

/// Brings a tenant to life: its channels and state, its upstreams and jobs ready to run.
pub fn start(config: TenantConfig, code: &Code, shared: &mut Shared<'_>) -> Started {
    let Shared { guests, metrics, shards, store, total } = shared;
    let counts = Arc::new(metrics.tenant(&config.name));
    let channels =
        Arc::new(Channels::new(config.channels, config.limits.logs, config.compress_above, Arc::clone(&counts)));
    let handle = |upstream: &UpstreamConfig| {
        let demand = upstream.linger.map(|_| Arc::clone(&channels.demand));
        Arc::new(upstream::Handle::new(Arc::clone(&upstream.name), demand))
    };
    let handles: Vec<_> = config.upstreams.iter().map(handle).collect();
    let terms = Terms {
        metrics: Arc::clone(&counts),
        max_message: config.limits.client_message,
        budget: Budget::new(config.limits.client_backlog),
        total: Arc::clone(total),
        demand: Arc::clone(&channels.demand),
        compress_above: config.compress_above,
    };
    let tenant = Arc::new(Tenant {
        name: config.name,
        path: config.path,
        cors: config.cors,
        channels,
        terms: Arc::new(terms),
        shards: Arc::clone(shards),
        upstreams: handles.clone(),
        state: Arc::new(State::new(config.limits.state)),
        store: store.map(Arc::clone),
        settings: config.settings,
        limits: config.limits,
        metrics: counts,
    });
    let guest = |role: &'static str, name: &Arc<str>| Guest {
        tenant: Arc::clone(&tenant),
        role,
        name: Arc::clone(name),
        metrics: metrics.guest(&tenant.name, role, name),
    };
    let mut upstreams = Vec::new();
    for (config, handle) in config.upstreams.into_iter().zip(handles) {
        let metrics = Arc::new(metrics.upstream(&tenant.name, &config.name));
        let sink = match (&code.filter, guests.as_mut()) {
            (Some(code), Some(guests)) => {
                Sink::Filter(guests.filter(Arc::clone(code), guest(FilterCode::ROLE, &config.name)))
            }
            _ => Sink::Channel(Arc::clone(&tenant.channels), Arc::clone(&config.name)),
        };
        let need = Need::new(&tenant.channels.demand, config.linger);
        upstreams.push(Upstream { tenant: Arc::clone(&tenant.name), config, sink, metrics, handle, need });
    }
    let tasks = guests.as_ref().map(|guests| guests.tasks());
    let handler =
        code.client.as_ref().zip(tasks.clone()).map(|(code, tasks)| {
            Handler::new(Arc::clone(code), guest(ClientCode::ROLE, &ClientCode::ROLE.into()), tasks)
        });
    let api = code.api.as_ref().zip(tasks).zip(config.api).map(|((code, tasks), api)| {
        Api::new(Arc::clone(code), guest(ApiCode::ROLE, &ApiCode::ROLE.into()), api.reuse, tasks)
    });
    let job = |schedule: ScheduleConfig| {
        let code = Arc::clone(code.job.as_ref()?);
        let missed = metrics.missed_ticks(&tenant.name, JobCode::ROLE, &schedule.name);
        Some(Job { code, guest: guest(JobCode::ROLE, &schedule.name), schedule, missed })
    };
    let jobs = config.schedules.into_iter().filter_map(job).collect();
    Started { tenant, upstreams, handler, api, jobs }
}
