//! The relay as a whole: what starts in which order, and what stops in which.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use config::{HostLimits, RelayConfig, TenantConfig, TenantsFolder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{
    admin, api,
    component::{EngineSource, Tasks},
    delivery::{Shards, Timing},
    entry,
    entry::EntryContext,
    metrics::Metrics,
    shutdown::Stop,
    store,
    store::Store,
    tenant::HostPlaces,
    tenants,
    tenants::{Records, TenantCode, Tenants, Watch},
    upstream::Connector,
};

/// File descriptors kept for all that is neither a client nor a handshake: upstreams, listeners, epolls, files.
const RESERVED_FILES: usize = 256;

/// Why the relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Every component that cannot be used, one a line.
    #[error("{}", .0.join("\n"))]
    Components(Vec<String>),
    #[error("cannot listen on {address} for {listener}: {error}")]
    Bind { listener: &'static str, address: SocketAddr, error: io::Error },
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Store(#[from] store::Unusable),
    #[error("a thread or runtime does not start: {0}")]
    Threads(#[from] io::Error),
}

/// A relay whose listeners are bound; [`Relay::run`] does the rest.
pub struct Relay {
    pub clients: SocketAddr,
    pub api: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub metrics: Arc<Metrics>,
    tenants: Tenants,
    /// Of where tenants may change.
    watch: Option<Watch>,
    engine: EngineSource,
    entry_context: Arc<EntryContext>,
    listener: TcpListener,
    api_context: Arc<api::ApiContext>,
    api_listener: Option<TcpListener>,
    admin_listener: Option<TcpListener>,
    shutdown_timeout: Duration,
}

impl Relay {
    /// Loads every component, then binds every listener. Nothing listens if anything is wrong.
    pub fn bind(config: RelayConfig) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let mut engine = EngineSource::new(config.limits, config.cache.clone(), Arc::clone(&metrics));
        let watch = config.folder.and_then(|folder| watch(folder, &config.tenants));
        let codes = load_code(&config.tenants, &mut engine)?;

        let listen =
            |listener, address| {
                entry::bind(address)
                    .and_then(|bound| Ok((bound.local_addr()?, bound)))
                    .map_err(|error| StartError::Bind { listener, address, error })
            };
        let (clients, listener) = listen("clients", config.listen.clients)?;
        let (api, api_listener) = config.listen.api.map(|address| listen("api", address)).transpose()?.unzip();
        let (admin, admin_listener) = config.listen.admin.map(|address| listen("admin", address)).transpose()?.unzip();

        let total = Arc::new(AtomicUsize::new(0));
        let limits = config.limits;
        let room = Capacity::fit(&limits, raise_file_limit());
        let shards = Arc::new(Shards::start(
            shard_count(),
            Timing {
                ping_interval: limits.ping_interval,
                stall_timeout: limits.stall_timeout,
                shutdown_timeout: limits.shutdown_timeout,
            },
        )?);
        let kept = codes.iter().any(TenantCode::keeps_records).then_some(config.store.clone()).flatten();
        let keep = config.tenants.iter().flat_map(tenants::keep).collect();
        let open = kept.map(|store| Store::open(store, keep, Arc::clone(&metrics))).transpose()?;
        let store = Records { config: config.store, open };
        let mut tenants =
            Tenants::new(&metrics, &shards, &total, HostPlaces::new(limits.instances), Connector::new()?, store);
        for (config, code) in config.tenants.into_iter().zip(&codes) {
            tenants.apply(config, code)?;
        }
        tenants.publish();
        let entry_context = EntryContext {
            routes: Arc::clone(tenants.routes()),
            trusted_proxies: config.trusted_proxies.clone(),
            metrics: Arc::clone(&metrics),
            shards,
            total,
            max_clients: room.clients,
            max_handshakes: room.handshakes,
            handshake_timeout: limits.handshake_timeout,
            reads: Arc::new(Semaphore::new(entry::MAX_READS)),
            commands: Tasks::here(),
        };
        let api_context = api::ApiContext {
            routes: Arc::clone(tenants.routes()),
            trusted_proxies: config.trusted_proxies,
            metrics: Arc::clone(&metrics),
            max_connections: room.api_connections,
            stall_timeout: limits.stall_timeout,
            shutdown_timeout: limits.shutdown_timeout,
        };
        Ok(Self {
            clients,
            api,
            admin,
            metrics,
            tenants,
            watch,
            engine,
            entry_context: Arc::new(entry_context),
            listener,
            api_context: Arc::new(api_context),
            api_listener,
            admin_listener,
            shutdown_timeout: limits.shutdown_timeout,
        })
    }

    /// Relays until told to stop; then stops in the order data flows, so that what came in still goes out.
    pub async fn run(mut self, mut stop: Stop) {
        let routes = Arc::clone(self.tenants.routes());
        let mut listeners = JoinSet::new();
        listeners.spawn(entry::run(self.listener, Arc::clone(&self.entry_context), stop.clone()));
        if let Some(listener) = self.api_listener {
            listeners.spawn(api::run(listener, self.api_context, stop.clone()));
        }
        if let Some(listener) = self.admin_listener {
            listeners.spawn(admin::run(listener, routes, self.metrics, stop.clone()));
        }
        self.tenants.run(self.watch, self.engine, stop.clone()).await;
        stop.wait().await;
        while listeners.join_next().await.is_some() {}
        self.tenants.stop_all(self.shutdown_timeout).await;
        // Joining the shards' threads is all that is left to do on this one.
        self.entry_context.shards.shutdown();
        self.tenants.end(self.shutdown_timeout).await;
    }
}

fn watch(folder: TenantsFolder, tenants: &[TenantConfig]) -> Option<Watch> {
    let watch = Watch::new(folder, tenants);
    watch.inspect_err(|error| tracing::error!(%error, "the tenants' folder is not watched")).ok()
}

/// What is wrong with the components of these tenants, of a host whose configuration cannot be read.
pub fn check_components(tenants: &[TenantConfig]) -> Vec<String> {
    let mut engine = EngineSource::new(HostLimits::default(), None, Arc::new(Metrics::new()));
    match load_code(tenants, &mut engine) {
        Ok(_) => Vec::new(),
        Err(StartError::Components(problems)) => problems,
        Err(error) => vec![error.to_string()],
    }
}

fn load_code(tenants: &[TenantConfig], engine: &mut EngineSource) -> Result<Vec<TenantCode>, StartError> {
    // Without code there is no engine and no guests' runtime.
    if !tenants.iter().any(TenantConfig::has_code) {
        return Ok(tenants.iter().map(|_| TenantCode::default()).collect());
    }
    let engine = engine.get().map_err(|error| StartError::Engine(format!("{error:#}")))?;
    let mut codes = Vec::new();
    let mut problems = Vec::new();
    for loaded in tenants::load_all(tenants, engine) {
        match loaded {
            Ok(code) => codes.push(code),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(codes) } else { Err(StartError::Components(problems)) }
}

/// One core is left to upstreams, handshakes and guests.
fn shard_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).max(1)
}

/// How many connections of each kind there may be at once.
#[derive(Debug, PartialEq, Eq)]
struct Capacity {
    clients: usize,
    handshakes: usize,
    api_connections: usize,
}

impl Capacity {
    /// What the limits say, as far as the files go that the process may have open.
    fn fit(limits: &HostLimits, files: usize) -> Self {
        // Small shares, so that little room leaves some for clients too.
        let handshakes = limits.handshakes.min(files / 4);
        let api_connections = limits.api_connections.min(files / 8);
        let room = files.saturating_sub(handshakes + api_connections + RESERVED_FILES.min(files / 4));
        let clients = limits.clients.unwrap_or(room).min(room);
        let lowered = handshakes < limits.handshakes
            || api_connections < limits.api_connections
            || limits.clients.is_some_and(|wanted| clients < wanted);
        if lowered {
            tracing::warn!(
                files,
                clients,
                handshakes,
                api_connections,
                "limits lowered: the process may not have more files open (ulimit -n)"
            );
        }
        Self { clients, handshakes, api_connections }
    }
}

/// Lets the process have as many files as the system allows it; returns how many.
fn raise_file_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = if raised.is_ok() { maximum } else { current };
    files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_files_there_are() {
        let fit = |clients, files| {
            let Capacity { clients, handshakes, api_connections } =
                Capacity::fit(&HostLimits { clients, ..HostLimits::default() }, files);
            (clients, handshakes, api_connections)
        };
        assert_eq!(fit(None, 20_000), (20_000 - 4096 - 2048 - 256, 4096, 2048));
        assert_eq!(fit(Some(100), 20_000), (100, 4096, 2048));
        assert_eq!(fit(None, 1024), (384, 256, 128));
        assert_eq!(fit(Some(5000), 300), (113, 75, 37));
    }
}
