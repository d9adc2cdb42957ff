//! A tenant at run time: the unit of isolation.

use std::sync::{Arc, atomic::AtomicUsize};

use crate::{
    channel::Channels,
    client::Terms,
    component::{Engine, FilterCode, Guest, Guests, Outlet},
    config::TenantConfig,
    metrics::Metrics,
    state::State,
    upstream::{Sink, Status, Upstream},
};

/// What the clients' listener needs of a tenant.
pub struct Tenant {
    pub name: Arc<str>,
    /// The path its clients connect to.
    pub path: String,
    pub channels: Arc<Channels>,
    pub terms: Arc<Terms>,
    /// Each upstream's name and state.
    pub upstreams: Vec<(Arc<str>, Arc<Status>)>,
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
    let channels = Arc::new(Channels::new(config.channels, Arc::clone(&counts)));
    let settings: Arc<[(String, String)]> = config.settings.into();
    let state = Arc::new(State::new(config.limits.state));
    let mut upstreams = Vec::new();
    for upstream in config.upstreams {
        let upstream_counts = Arc::new(metrics.upstream(&config.name, &upstream.name));
        let sink = match (&code.filter, guests.as_mut()) {
            (Some(code), Some(guests)) => {
                let guest = Guest {
                    tenant: Arc::clone(&config.name),
                    name: Arc::clone(&upstream.name),
                    settings: Arc::clone(&settings),
                    state: Arc::clone(&state),
                    limits: config.limits,
                };
                let outlet = Outlet {
                    channels: Arc::clone(&channels),
                    tenant: Arc::clone(&counts),
                    upstream: Arc::clone(&upstream_counts),
                };
                Sink::Filter(guests.filter(Arc::clone(code), guest, outlet))
            }
            _ => Sink::Channel(Arc::clone(&channels)),
        };
        upstreams.push(Upstream {
            tenant: Arc::clone(&config.name),
            config: upstream,
            sink,
            metrics: upstream_counts,
            status: Arc::default(),
        });
    }
    let states = upstreams.iter().map(|up| (Arc::clone(&up.config.name), Arc::clone(&up.status))).collect();
    let terms = Terms { metrics: counts, max_message: config.limits.client_message, total: Arc::clone(total) };
    let tenant = Tenant { name: config.name, path: config.path, channels, terms: Arc::new(terms), upstreams: states };
    (Arc::new(tenant), upstreams)
}
