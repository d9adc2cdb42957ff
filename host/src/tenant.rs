//! A tenant at run time: the unit of isolation.
//!
//! The [`Tenant`] outlives its code: it has the channels, the state, the clients and the metrics. A [`TenantVersion`]
//! is what the manifest says now, and is replaced as a whole. Guests hold the version that their code came with.

use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use arc_swap::ArcSwap;
use config::{TenantConfig, TenantLimits, grants::Grants};
use tokio::{runtime::Handle, sync::Semaphore};

use crate::{
    account::{Account, Charge, Reserve},
    channel::Channels,
    delivery::{ClientId, ClientLimits, ClientSources, Shards, Step},
    dial::{Dialer, Lookups},
    log_lines::LogLines,
    metrics::{Metrics, TenantMetrics},
    rate::Rate,
    state::State,
    store::{RecordsRoom, Store},
    upstream,
    usage::Usage,
};

mod denials;
mod outbound_limit;
pub mod places;
mod process_share;
mod refusals;
mod request_turn;
pub mod turns;

pub use denials::Denials;
pub use outbound_limit::{OutboundLimit, OutboundRefused};
pub use places::{HostPlaces, Places};
pub use process_share::{MappingShare, ProcessLimits, ProcessShare};
pub use refusals::{Refusals, TenantRefused};
pub use request_turn::RequestTurn;
pub use turns::{Turns, guest_threads};

/// More channels than this are not changed while others wait.
const MANY_CHANNELS: usize = 1000;

/// What all tenants of the host share.
#[derive(Clone)]
pub struct HostResources {
    pub metrics: Arc<Metrics>,
    pub shards: Arc<Shards>,
    /// Counts the clients of all tenants.
    pub clients: Arc<AtomicUsize>,
    /// Limits the instances of all tenants.
    pub places: Arc<HostPlaces>,
    /// Limits their mappings and files.
    pub process: Arc<ProcessLimits>,
    /// Opens connections to partners and to servers that guests ask.
    pub dialer: Arc<Dialer>,
    /// The turns that all tenants share. `None`: each has its own.
    pub turns: Option<Turns>,
}

/// What a tenant's clients and guests and the listeners share.
pub struct Tenant {
    pub name: Arc<str>,
    /// Limits its memory in all.
    pub account: Arc<Account>,
    /// What it uses of processors and networks.
    pub usage: Arc<Usage>,
    pub channels: Arc<Channels>,
    pub client_limits: Arc<ClientLimits>,
    /// Counts its clients by the addresses they come from.
    pub sources: ClientSources,
    /// Has its clients' sockets.
    pub shards: Arc<Shards>,
    pub state: Arc<State>,
    pub metrics: Arc<TenantMetrics>,
    /// Shares the guests' threads among its calls.
    pub turns: Turns,
    /// Limits its guests' instances.
    pub places: Places,
    /// Limits its guests' mappings and files.
    pub process: ProcessShare,
    /// Limits how often its guests, and its upstreams without a filter, publish.
    pub publications: Arc<Rate>,
    /// One permit to read a socket, for the one of its upstreams whose turn it is.
    pub read_turn: Arc<Semaphore>,
    /// In which requests for its API are answered, clients are let in, and their commands are carried out.
    pub api_turn: RequestTurn,
    pub handshake_turn: RequestTurn,
    pub command_turn: RequestTurn,
    pub log_lines: Arc<LogLines>,
    /// Its room for records that wait to be written.
    pub records: RecordsRoom,
    pub outbound: Arc<OutboundLimit>,
    pub dialer: Arc<Dialer>,
    /// Looks up the names of its partners and of servers that its guests ask.
    pub lookups: Arc<Lookups>,
    /// What its guests have asked for in vain: hosts that are not granted, settings that are not there.
    pub denied_hosts: Denials,
    pub missed_settings: Denials,
    pub version: ArcSwap<TenantVersion>,
}

/// What a tenant's manifest says.
pub struct TenantVersion {
    /// Origins whose pages may be clients. Empty: all.
    pub origins: Vec<String>,
    /// Subprotocols that clients of plain WebSockets may choose one of.
    pub subprotocols: Vec<String>,
    /// Whether the log says that clients offer some of which none is taken.
    pub told_subprotocols: AtomicBool,
    pub upstreams: Vec<Arc<upstream::Handle>>,
    /// `None`: its code keeps no records, or the host has no store.
    pub store: Option<Arc<Store>>,
    /// Guests read them through `wasi:config`.
    pub settings: Vec<(String, String)>,
    pub grants: Arc<Grants>,
    pub limits: TenantLimits,
    /// Payloads of this many bytes and more are compressed for clients that accept it. `None`: none are.
    pub compress_above: Option<usize>,
    /// What its code takes of the tenant's memory, by the address of what was loaded. Versions share it.
    pub code: CodeCharges,
}

/// The charges of code, each by the address of what was loaded.
pub type CodeCharges = HashMap<usize, Arc<CodeCharge>>;

/// What loaded code takes of a tenant's memory.
pub struct CodeCharge {
    _charge: Charge,
    /// Kept, so that its address is nothing else's.
    _loaded: Arc<dyn Any + Send + Sync>,
}

impl CodeCharge {
    pub fn new(charge: Charge, loaded: Arc<dyn Any + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { _charge: charge, _loaded: loaded })
    }
}

impl Tenant {
    /// Makes a tenant that nothing runs for yet.
    pub fn new(config: &TenantConfig, host: &HostResources) -> Arc<Self> {
        let metrics = Arc::new(host.metrics.tenant(&config.name));
        let limits = &config.limits;
        let rules = config.channels.clone();
        let account = Account::new(limits, Arc::clone(&metrics));
        let shares = (Arc::clone(&metrics), Arc::clone(&account));
        let channels = Arc::new(Channels::new(rules, limits, config.compress_above, shares.0, shares.1));
        let reserve: Arc<dyn Reserve> = Arc::<Channels>::clone(&channels);
        account.set_reserve(Arc::downgrade(&reserve));
        let (total, demand) = (Arc::clone(&host.clients), Arc::clone(&channels.demand));
        let shares = (Arc::clone(&metrics), Arc::clone(&account));
        let usage = Usage::new(limits, Arc::clone(&metrics));
        let client_limits = Arc::new(ClientLimits::new(shares.0, limits, total, demand, shares.1, Arc::clone(&usage)));
        let outbound = (limits.outbound_requests, limits.outbound_requests_per_second);
        Arc::new(Self {
            name: Arc::clone(&config.name),
            channels,
            sources: ClientSources::new(Arc::clone(&client_limits), limits.clients_per_address),
            client_limits,
            shards: Arc::clone(&host.shards),
            state: Arc::new(State::new(limits.quota(), &account)),
            turns: host.turns.clone().unwrap_or_else(|| Turns::new(guest_threads(), &usage)),
            usage,
            places: Places::new(limits.instances, &host.places, Arc::clone(&metrics)),
            process: host.process.share(),
            publications: Arc::new(Rate::new(limits.publications_per_second)),
            read_turn: Arc::new(Semaphore::new(1)),
            log_lines: Arc::new(LogLines::new(
                Arc::clone(&config.name),
                limits.log_lines_per_second,
                Arc::clone(&metrics),
            )),
            api_turn: RequestTurn::default(),
            handshake_turn: RequestTurn::default(),
            command_turn: RequestTurn::default(),
            records: RecordsRoom::default(),
            outbound: OutboundLimit::new(outbound.0, outbound.1, Arc::clone(&metrics)),
            dialer: Arc::clone(&host.dialer),
            lookups: Arc::default(),
            denied_hosts: Denials::default(),
            missed_settings: Denials::default(),
            metrics,
            version: ArcSwap::new(TenantVersion::new(config, Vec::new(), None, CodeCharges::new())),
            account,
        })
    }

    /// Has the tenant's channels follow its rules; if they are many, a moment later and on another thread.
    fn apply_channel_rules(&self) {
        let channels = Arc::clone(&self.channels);
        match Handle::try_current() {
            // Nobody waits for it.
            Ok(runtime) if channels.count() > MANY_CHANNELS => {
                drop(runtime.spawn_blocking(move || channels.apply_rules()));
            }
            _ => channels.apply_rules(),
        }
    }

    /// An id for a client that its handler is asked about.
    pub fn next_client_id(&self) -> ClientId {
        self.shards.next_id(&self.client_limits)
    }

    /// Does something with a client of this tenant, in the order of these calls. A client that is gone is left alone.
    ///
    /// Async for the day when the client may be at another node; here it never waits.
    #[allow(clippy::unused_async)]
    pub async fn take_steps(&self, client: ClientId, steps: Vec<Step>) {
        self.shards.take_steps(client, &self.client_limits, steps, None);
    }

    /// Returns the version that begins to run now.
    pub fn version(&self) -> Arc<TenantVersion> {
        self.version.load_full()
    }

    /// Takes over what another manifest says. Channels, state and clients stay.
    pub fn reconfigure(&self, config: &TenantConfig, version: Arc<TenantVersion>) {
        let limits = &config.limits;
        self.account.set(limits);
        self.usage.set(limits);
        self.channels.reconfigure(config.channels.clone(), limits, config.compress_above);
        self.apply_channel_rules();
        self.state.set_quota(limits.quota());
        self.client_limits.set(limits);
        self.sources.set(limits.clients_per_address);
        self.places.set(limits.instances);
        self.publications.set(limits.publications_per_second);
        self.log_lines.set(limits.log_lines_per_second);
        self.outbound.set(limits.outbound_requests, limits.outbound_requests_per_second);
        self.version.store(version);
    }
}

impl TenantVersion {
    /// `code`: what its code takes of the tenant's memory.
    pub fn new(
        config: &TenantConfig,
        upstreams: Vec<Arc<upstream::Handle>>,
        store: Option<Arc<Store>>,
        code: CodeCharges,
    ) -> Arc<Self> {
        Arc::new(Self {
            origins: config.origins.clone(),
            subprotocols: config.subprotocols.clone(),
            told_subprotocols: AtomicBool::new(false),
            upstreams,
            store,
            settings: config.settings.clone(),
            grants: Arc::clone(&config.grants),
            limits: config.limits,
            compress_above: config.compress_above,
            code,
        })
    }

    pub fn upstream(&self, name: &str) -> Option<&Arc<upstream::Handle>> {
        self.upstreams.iter().find(|upstream| &*upstream.name == name)
    }
}
