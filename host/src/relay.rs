//! The relay as a whole: what starts in which order, and what stops in which.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use config::{
    HostLimits, Listen, Problem, Problems, RefusedTenant, RelayConfig, StoreConfig, TenantConfig, TenantsFolder,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

use crate::{
    admin, api,
    api::ApiContext,
    component::{EngineError, EngineSource, Tasks},
    delivery::{Mailbox, Shards, Timing},
    dial::{
        Dialer,
        proxy::{Proxy, UnknownProxy},
    },
    entry,
    entry::{ClientListener, EntryContext, Proxies},
    fair_pool,
    fair_pool::FairPool,
    memory,
    metrics::Metrics,
    routes::Routes,
    runtime_thread::RuntimeThread,
    serve::Connections,
    shutdown::{Ending, Stop},
    store,
    tenant::{HostPlaces, HostResources, ProcessLimits, RequestTurn},
    tenants,
    tenants::{CodeProblem, Records, TenantCode, Tenants, Watch},
    tls::TlsError,
    upstream::Connector,
};

mod capacity;

use crate::relay::capacity::Capacity;

/// What becomes of the start if a tenant cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// The relay does not start.
    Strict,
    /// The tenant is refused, and the others are served.
    Lenient,
}

/// Why the relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Every component that cannot be used, each on a line of its own.
    #[error("{}", tenants::listed(.0, "\n"))]
    Components(Vec<CodeProblem>),
    /// Every mistake of every manifest.
    #[error("{}", Problems(.0.clone()))]
    Manifests(Vec<Problem>),
    #[error("cannot listen on {address} for {listener}: {error}")]
    Bind { listener: &'static str, address: SocketAddr, error: io::Error },
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(EngineError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Proxy(#[from] UnknownProxy),
    #[error(transparent)]
    Store(#[from] store::Unusable),
    #[error("a thread or runtime does not start: {0}")]
    Threads(#[from] io::Error),
}

/// A relay whose listeners are bound. [`Relay::run`] does the rest.
pub struct Relay {
    pub clients: SocketAddr,
    pub api: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    listeners: Listeners,
    /// Where longer commands of clients of the Centrifuge protocol are carried out, if no handler is asked.
    commands: RuntimeThread,
    entry: Arc<EntryContext>,
    api_context: Arc<ApiContext>,
    metrics: Arc<Metrics>,
    tenants: Tenants,
    /// Watches the tenants' folder. `None`: they do not come from a folder.
    watch: Option<Watch>,
    engine: EngineSource,
    shutdown_timeout: Duration,
}

impl Relay {
    /// Loads every component, then binds every listener. Nothing listens if anything of the host's is wrong, or, when
    /// strict, anything of a tenant's.
    pub fn bind(config: RelayConfig, strictness: Strictness) -> Result<Self, StartError> {
        let RelayConfig { listen, limits, proxy, store, cache, tenants: configs, refused, folder, .. } = config;
        let proxies = Proxies { trusted: config.trusted_proxies, client_address: config.client_address };
        memory::return_large_blocks();
        fair_pool::set_ipv6_prefix(limits.ipv6_prefix);
        let metrics = Arc::new(Metrics::new());
        let mut engine = EngineSource::new(limits, cache, Arc::clone(&metrics));
        // Watched before the code is loaded: what is written meanwhile is a change.
        if strictness == Strictness::Strict && !refused.is_empty() {
            return Err(StartError::Manifests(refused.into_iter().flat_map(|refused| refused.problems.0).collect()));
        }
        let given =
            folder.iter().flat_map(|folder| &folder.bounds.allowed.hosts).map(|given| given.host.clone()).collect();
        let mut watch = folder.and_then(|folder| watch(folder, &configs, &refused));
        let Loaded { sound, broken } = load_code(configs, &mut engine)?;
        if strictness == Strictness::Strict && !broken.is_empty() {
            return Err(StartError::Components(broken.into_iter().flat_map(|(_, problems)| problems).collect()));
        }
        let connector = Connector::new()?;
        let proxy = proxy.as_ref().map(Proxy::new).transpose()?.flatten();
        let listeners = Listeners::bind(&listen)?;
        let capacity = Capacity::of_process(&limits);
        let host = HostResources {
            metrics: Arc::clone(&metrics),
            shards: start_shards(&limits)?,
            clients: Arc::default(),
            places: HostPlaces::new(limits.instances),
            process: ProcessLimits::of_process(),
            dialer: Arc::new(Dialer::new(proxy)),
            turns: None,
        };
        let records = open_records(store, &sound, &metrics)?;
        let mut tenants = Tenants::new(host.clone(), given, connector, records)?;
        for (config, code) in sound {
            tenants.apply(config, &code)?;
        }
        for RefusedTenant { folder, problems, .. } in refused {
            tenants.refuse(&folder, &problems.into());
        }
        for (folder, problems) in broken {
            tenants.refuse(&folder, &problems.into());
            if let Some(watch) = &mut watch {
                watch.refused(&folder);
            }
        }
        tenants.publish();
        let (routes, commands) = (tenants.routes(), RuntimeThread::start("commands")?);
        Ok(Self {
            clients: listeners.clients.first().map_or(UNBOUND, |listener| listener.address),
            api: first(listeners.api.as_ref()),
            admin: first(listeners.admin.as_ref()),
            listeners,
            entry: Arc::new(entry_context(&host, routes, proxies.clone(), &limits, &capacity, &commands)),
            commands,
            api_context: Arc::new(api_context(&host, routes, proxies, &limits, &capacity)),
            metrics,
            tenants,
            watch,
            engine,
            shutdown_timeout: limits.shutdown_timeout,
        })
    }

    /// Relays until told to stop. Then stops in the order data flows, so that what came in still goes out.
    /// `leaving`: from when on it says that it is not ready.
    pub async fn run(mut self, leaving: Stop, mut stop: Stop) {
        let Listeners { clients, api, admin } = self.listeners;
        // It ends last.
        let _commands = self.commands;
        let (mut listeners, mut threads) = (JoinSet::new(), Vec::new());
        listeners.spawn(entry::run(clients, Arc::clone(&self.entry), stop.clone()));
        if let Some((api, thread)) = api {
            for Bound { listener, .. } in api {
                let context = Arc::clone(&self.api_context);
                listeners.spawn_on(api::run(listener, context, stop.clone()), thread.runtime());
            }
            threads.push(thread);
        }
        if let Some((admin, thread)) = admin {
            for Bound { listener, .. } in admin {
                let (routes, refusals) = (Arc::clone(self.tenants.routes()), Arc::clone(self.tenants.refusals()));
                let metrics = Arc::clone(&self.metrics);
                let admin = admin::run(listener, routes, refusals, metrics, leaving.clone(), stop.clone());
                listeners.spawn_on(admin, thread.runtime());
            }
            threads.push(thread);
        }
        let (sender, told) = oneshot::channel();
        let timeout = self.shutdown_timeout;
        // A change of a tenant may be under way, which waits for others.
        let watched = stop.clone();
        let late = async {
            stop.wait().await;
            let ending = Ending::begin(timeout);
            let _ = sender.send(ending);
            tokio::time::sleep(ending.left(Ending::API)).await;
        };
        tokio::select! {
            () = self.tenants.run(self.watch, self.engine, watched) => {}
            () = late => tracing::warn!("a change of a tenant is cut off at shutdown"),
        }
        let ending = told.await.unwrap_or_else(|_| Ending::begin(timeout));
        while listeners.join_next().await.is_some() {}
        drop(threads);
        self.tenants.stop_all(ending.left(Ending::TENANTS)).await;
        let shards = Arc::clone(&self.entry.shards);
        // Clients that are not closed yet are still answered here.
        let closed = tokio::task::spawn_blocking(move || shards.shutdown(ending.at(Ending::CLIENTS)));
        // An error means that the runtime ends.
        let _ = closed.await;
        self.tenants.end(ending).await;
    }
}

/// Where a relay without a clients' listener would listen. A configuration always has one.
const UNBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A listener, and where it listens.
struct Bound {
    address: SocketAddr,
    listener: TcpListener,
}

/// The clients' listener is served by the thread that starts the relay, the others each by one of its own: what costs
/// one of them time holds up none of the others.
struct Listeners {
    clients: Vec<ClientListener>,
    api: Option<(Vec<Bound>, RuntimeThread)>,
    admin: Option<(Vec<Bound>, RuntimeThread)>,
}

impl Bound {
    /// One for each of these addresses.
    fn all(name: &'static str, addresses: &[SocketAddr]) -> Result<Vec<Self>, StartError> {
        let bound = |address: &SocketAddr| {
            entry::bind(*address, addresses)
                .and_then(|listener| Ok(Self { address: listener.local_addr()?, listener }))
                .map_err(|error| StartError::Bind { listener: name, address: *address, error })
        };
        addresses.iter().map(bound).collect()
    }

    /// Those with a thread of their own, if there are addresses.
    fn apart(name: &'static str, addresses: &[SocketAddr]) -> Result<Option<(Vec<Self>, RuntimeThread)>, StartError> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let thread = RuntimeThread::start(name)?;
        let bound = {
            let _entered = thread.runtime().enter();
            Self::all(name, addresses)?
        };
        Ok(Some((bound, thread)))
    }
}

impl Listeners {
    fn bind(listen: &Listen) -> Result<Self, StartError> {
        let clients = Bound::all("clients", &listen.clients)?.into_iter();
        let watched = |Bound { address, listener }| {
            let failed = |error| StartError::Bind { listener: "clients", address, error };
            ClientListener::open(address, listener).map_err(failed)
        };
        Ok(Self {
            clients: clients.map(watched).collect::<Result<_, _>>()?,
            api: Bound::apart("api", &listen.api)?,
            admin: Bound::apart("admin", &listen.admin)?,
        })
    }
}

/// The first address of a listener.
fn first(bound: Option<&(Vec<Bound>, RuntimeThread)>) -> Option<SocketAddr> {
    bound.and_then(|(all, _)| all.first()).map(|bound| bound.address)
}

fn watch(folder: TenantsFolder, tenants: &[TenantConfig], refused: &[RefusedTenant]) -> Option<Watch> {
    let watch = Watch::new(folder, tenants, refused);
    watch.inspect_err(|error| tracing::error!(%error, "the tenants' folder is not watched")).ok()
}

/// Checks the components of these tenants, for a host whose configuration cannot be read.
pub fn check_components(tenants: &[TenantConfig]) -> Result<(), StartError> {
    let mut engine = EngineSource::new(HostLimits::default(), None, Arc::new(Metrics::new()));
    let Loaded { broken, .. } = load_code(tenants.to_vec(), &mut engine)?;
    let problems: Vec<_> = broken.into_iter().flat_map(|(_, problems)| problems).collect();
    if problems.is_empty() { Ok(()) } else { Err(StartError::Components(problems)) }
}

/// Tenants with their code.
#[derive(Default)]
struct Loaded {
    sound: Vec<(TenantConfig, TenantCode)>,
    /// Folders of tenants whose code cannot be used.
    broken: Vec<(PathBuf, Vec<CodeProblem>)>,
}

fn load_code(tenants: Vec<TenantConfig>, engine: &mut EngineSource) -> Result<Loaded, StartError> {
    // Without code there is no engine and no guests' runtime.
    if !tenants.iter().any(TenantConfig::has_code) {
        let sound = tenants.into_iter().map(|config| (config, TenantCode::default()));
        return Ok(Loaded { sound: sound.collect(), ..Loaded::default() });
    }
    let engine = engine.get().map_err(StartError::Engine)?;
    let mut loaded = Loaded::default();
    for (code, config) in tenants::load_all(&tenants, engine).into_iter().zip(tenants) {
        match code {
            Ok(code) => loaded.sound.push((config, code)),
            Err(problems) => loaded.broken.push((config.folder, problems)),
        }
    }
    Ok(loaded)
}

fn start_shards(limits: &HostLimits) -> io::Result<Arc<Shards>> {
    let &HostLimits { ping_interval, stall_timeout, .. } = limits;
    Shards::start(capacity::shard_count(), Timing { ping_interval, stall_timeout }).map(Arc::new)
}

/// Opens the store if any tenant's code keeps records.
fn open_records(
    store: Option<StoreConfig>,
    tenants: &[(TenantConfig, TenantCode)],
    metrics: &Arc<Metrics>,
) -> Result<Records, store::Unusable> {
    let mut records = Records::new(store);
    if tenants.iter().any(|(_, code)| code.keeps_records()) {
        records.open(tenants.iter().flat_map(|(config, _)| tenants::keep(config)).collect(), metrics)?;
    }
    Ok(records)
}

fn entry_context(
    host: &HostResources,
    routes: &Arc<Routes>,
    proxies: Proxies,
    limits: &HostLimits,
    capacity: &Capacity,
    commands: &RuntimeThread,
) -> EntryContext {
    EntryContext {
        routes: Arc::clone(routes),
        proxies,
        metrics: Arc::clone(&host.metrics),
        shards: Arc::clone(&host.shards),
        arrived: Mailbox::new(),
        total: Arc::clone(&host.clients),
        max_clients: capacity.clients,
        max_handshakes: capacity.handshakes,
        handshakes: FairPool::new(capacity.handshakes),
        waiting: FairPool::new(capacity.handshakes / 2),
        handshake_timeout: limits.handshake_timeout,
        reads: FairPool::new(entry::MAX_READS),
        readers: FairPool::new(entry::MAX_READS),
        commands: Tasks::on(commands.runtime()),
    }
}

fn api_context(
    host: &HostResources,
    routes: &Arc<Routes>,
    proxies: Proxies,
    limits: &HostLimits,
    capacity: &Capacity,
) -> ApiContext {
    ApiContext {
        routes: Arc::clone(routes),
        proxies,
        metrics: Arc::clone(&host.metrics),
        connections: Connections::new(capacity.api_connections),
        strangers: RequestTurn::default(),
        idle_timeout: limits.api_idle_timeout,
        stall_timeout: limits.stall_timeout,
        shutdown_timeout: limits.shutdown_timeout.mul_f64(Ending::API),
    }
}
