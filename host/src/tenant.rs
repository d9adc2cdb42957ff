//! A tenant at run time: the unit of isolation.

use std::sync::{Arc, atomic::AtomicUsize};

use crate::{
    channel::Channels,
    client::Terms,
    component::{Engine, FilterCode, Guest, Guests},
    config::{TenantConfig, TenantLimits},
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
pub struct Code {
    pub filter: Option<Arc<FilterCode>>,
}

impl Code {
    /// Loads what the manifest names; an error says which file and why.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Self, String> {
        let Some(path) = &config.filter else { return Ok(Self { filter: None }) };
        let code = engine.load(path).and_then(|component| FilterCode::new(engine, &component));
        match code {
            Ok(filter) => Ok(Self { filter: Some(Arc::new(filter)) }),
            Err(error) => Err(format!("{}: components.filter: {error}", path.display())),
        }
    }
}

/// Brings a tenant to life: its channels, and its upstreams ready to run.
pub fn start(
    config: TenantConfig,
    code: &Code,
    guests: &mut Option<Guests>,
    metrics: &Arc<Metrics>,
    total: &Arc<AtomicUsize>,
) -> (Arc<Tenant>, Vec<Upstream>) {
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
    (tenant, upstreams)
}
