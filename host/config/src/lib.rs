//! The configuration that an operator and tenants write, checked as a whole before anything runs.
//!
//! `relay.toml` and each tenant's `tenant.toml` are walked by hand rather than derived, so that one run reports every
//! mistake in every file: see [`Problem`].

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::grants::{Allowed, Folder, Grants, Secret};

mod document;
mod file;
pub mod grants;
mod held;
mod limits;
mod manifest;
mod names;
pub mod pem;
mod relay;
mod secrets;
mod tenants;
mod units;
mod upstream;
mod url;

use crate::held::HeldFolder;
pub use crate::{
    document::{Problem, Problems},
    held::{FolderId, How, OpenError, open_beneath, open_file},
    limits::{TenantCaps, TenantLimits},
    relay::{Invalid, MySqlParser, MySqlUrl, load, load_host},
    secrets::{SecretFile, secret},
    tenants::{PassedOver, RefusedTenant, Tenants, TenantsFolder, meet},
    units::duration,
    upstream::{Credential, HeaderNames, Overflow, Subprotocols, TlsConfig, UpstreamConfig, header_value},
    url::{PartnerUrl, UrlError},
};

/// All that `serve` needs, from `relay.toml` and the tenants' folders.
#[derive(Debug)]
pub struct RelayConfig {
    pub listen: Listen,
    /// Peers who name the real client.
    pub trusted_proxies: Vec<IpNet>,
    /// Where they name it.
    pub client_address: ClientAddress,
    pub limits: HostLimits,
    /// The proxy that connections to partners and guests' requests go through.
    pub proxy: Option<ProxyConfig>,
    /// `None`: there are no components that could need one.
    pub store: Option<StoreConfig>,
    /// The folder for compiled code. `None`: there are no components, or compiled code is not kept.
    pub cache: Option<PathBuf>,
    /// The tenants without mistakes.
    pub tenants: Vec<TenantConfig>,
    pub refused: Vec<RefusedTenant>,
    /// The folder that the tenants come from and may change in. `None`: they do not come from files.
    pub folder: Option<TenantsFolder>,
}

/// Where a trusted proxy names the client: exactly one place, since the client may have written all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// The list to which each proxy appends.
    #[default]
    XForwardedFor,
    CfConnectingIp,
    XRealIp,
    /// The list of RFC 7239.
    Forwarded,
    /// Nowhere: the peer is the client.
    Peer,
}

/// Where records are kept: `[store]` of `relay.toml`.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The SQLite file: the store itself, or the outbox in front of MySQL.
    pub file: PathBuf,
    /// Largest size of the file, in bytes.
    pub size: u64,
    /// The `mysql://` URL of the database that the rows go to. `None`: they stay in the file.
    pub mysql: Option<Secret>,
    /// The file that this URL was read from.
    pub mysql_file: Option<PathBuf>,
}

impl StoreConfig {
    pub(crate) const SIZE: u64 = 1 << 30;
}

/// `proxy` of `relay.toml`, and the keys that go with it.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub source: ProxySource,
    /// `user:password`, for the proxy alone.
    pub credentials: Option<Secret>,
    /// Hosts that are connected to without the proxy: names with all below them, addresses, networks, or `*`.
    pub no_proxy: Vec<String>,
    /// Whether the proxy gets names rather than addresses.
    pub resolves: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxySource {
    /// An `http://` URL.
    Url(String),
    /// `HTTPS_PROXY` and the variables that go with it.
    Environment,
}

/// Where each listener binds; port 0 lets the system choose. A listener without an address is not there, as that of the
/// API and that of the admin in `pass`.
#[derive(Clone, Debug, Default)]
pub struct Listen {
    pub clients: Vec<SocketAddr>,
    pub api: Vec<SocketAddr>,
    pub admin: Vec<SocketAddr>,
}

/// Host-wide limits: `[limits]` of `relay.toml`.
#[derive(Clone, Copy, Debug)]
pub struct HostLimits {
    /// Most clients connected at once. `None`: as many as file descriptors allow.
    pub clients: Option<usize>,
    /// Most handshakes under way at once; the oldest makes room for the newest.
    pub handshakes: usize,
    /// Most connections to the API at once.
    pub api_connections: usize,
    /// Bits of an IPv6 address that count as one address: a household or a machine usually gets a whole /64.
    pub ipv6_prefix: u32,
    /// How long a connection to the API may be idle, and how long a request's headers may take.
    pub api_idle_timeout: Duration,
    /// Longest time from a connection's opening to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How often a client is pinged, and how long it has to answer.
    pub ping_interval: Duration,
    /// How long a client's writes may make no progress before it is dropped.
    pub stall_timeout: Duration,
    /// How long the host goes on after it was told to end, so that balancers notice.
    pub shutdown_notice: Duration,
    /// How long clients and guests have to finish after that, all together.
    pub shutdown_timeout: Duration,
    /// Most bytes of memory that compiling one component takes.
    pub compile_memory: usize,
    /// Longest time that compiling one component may take.
    pub compile_time: Duration,
    /// Most bytes of compiled code on disk.
    pub cache_size: u64,
    /// Most instances of all tenants' components at once.
    pub instances: usize,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            clients: None,
            handshakes: 4096,
            api_connections: 2048,
            ipv6_prefix: 64,
            // Longer than a balancer's 60 s, so that it is the balancer who closes.
            api_idle_timeout: Duration::from_secs(75),
            handshake_timeout: Duration::from_secs(10),
            // A client is pinged an eighth later at most, and so in the 30 s after which some proxies cut.
            ping_interval: Duration::from_secs(24),
            stall_timeout: Duration::from_secs(120),
            shutdown_notice: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
            // A Python component of 18 MB takes 400 MB and, alone on a core, some 10 s.
            compile_memory: 1 << 30,
            compile_time: Duration::from_secs(120),
            cache_size: 4 << 30,
            instances: 4096,
        }
    }
}

/// What the operator lets tenants have: `[tenant-limits]` and `[grants]` of relay.toml.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    pub caps: TenantCaps,
    pub allowed: Arc<Allowed>,
}

/// One tenant: its `tenant.toml`.
#[derive(Clone, Debug)]
pub struct TenantConfig {
    /// Lower-case letters, digits and hyphens, at most 63.
    pub name: Arc<str>,
    /// Where its files are.
    pub folder: PathBuf,
    /// The folder that this path led to when the manifest was read. `None`: it does not come from a folder.
    pub home: Option<FolderId>,
    /// Where that folder was, links followed.
    pub real_folder: PathBuf,
    /// Host names that clients must use, in lower case. Empty: any will do.
    pub hosts: Vec<String>,
    /// The path clients connect to. Without `path` in the manifest it is `/<name>`, or `/` if the tenant has hosts of
    /// its own.
    pub path: String,
    pub upstreams: Vec<UpstreamConfig>,
    /// The `.wasm` that makes credentials for each connection to a partner.
    pub dial: Option<PathBuf>,
    /// The filter's `.wasm`, links followed.
    pub filter: Option<PathBuf>,
    /// The client handler's `.wasm`. One file may have several roles.
    pub client: Option<PathBuf>,
    pub api: Option<ApiConfig>,
    /// The job's `.wasm`.
    pub job: Option<PathBuf>,
    /// The components' files as the manifest names them. Such a name may be a link, and the link may change.
    pub named: Vec<PathBuf>,
    pub schedules: Vec<ScheduleConfig>,
    /// Origins whose pages may be clients; `*` is any. Empty: all are let in, and no page may read over HTTP.
    pub origins: Vec<String>,
    /// Subprotocols that clients of plain WebSockets may choose one of.
    pub subprotocols: Vec<String>,
    /// Payloads of at least this many bytes are compressed for clients that accept it. `None`: no payload is.
    pub compress_above: Option<usize>,
    /// Per-channel settings, in the manifest's order.
    pub channels: Vec<ChannelRule>,
    /// How long collections of records are kept, by their names: `[records."name"] keep`.
    pub keep: Vec<(String, Duration)>,
    /// What guests read through `wasi:config`.
    pub settings: Vec<(String, String)>,
    pub grants: Arc<Grants>,
    pub limits: TenantLimits,
}

impl TenantConfig {
    /// Opens one of its components' files, beneath the very folder that its manifest was read from.
    pub fn open(&self, file: &Path) -> io::Result<File> {
        let held = HeldFolder::open(&self.folder)?;
        if Some(held.id()?) != self.home {
            return Err(io::Error::other("the tenant's folder was exchanged while it was read"));
        }
        let name = file.strip_prefix(held.real_path()?).map_err(io::Error::other)?;
        Ok(held.file(name)?)
    }

    /// A tenant with a name and nothing else, at `/`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            folder: PathBuf::new(),
            home: None,
            real_folder: PathBuf::new(),
            hosts: Vec::new(),
            path: "/".into(),
            upstreams: Vec::new(),
            dial: None,
            filter: None,
            client: None,
            api: None,
            job: None,
            named: Vec::new(),
            schedules: Vec::new(),
            origins: Vec::new(),
            subprotocols: Vec::new(),
            compress_above: None,
            channels: Vec::new(),
            keep: Vec::new(),
            settings: Vec::new(),
            grants: Arc::default(),
            limits: TenantLimits::default(),
        }
    }

    /// The folder granted to another tenant's guests that this tenant's own folder would be in, or around.
    pub fn folder_granted_to(&self, other: &Self) -> Option<&Path> {
        let own = |folder: &&Folder| grants::meet(&folder.path, &self.real_folder);
        let is_known = self.home.is_some() && !self.real_folder.as_os_str().is_empty();
        let granted = is_known.then(|| other.grants.folders.iter().find(own)).flatten();
        granted.map(|_| self.real_folder.as_path())
    }

    /// Whether it has any component.
    pub fn has_code(&self) -> bool {
        self.components().next().is_some()
    }

    /// Its components: the role of each, as `[components]` has it, and the file. A file with several roles is there
    /// once for each.
    pub fn components(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let api = self.api.as_ref().map(|api| &api.file);
        let files = [
            ("dial", self.dial.as_ref()),
            ("filter", self.filter.as_ref()),
            ("client", self.client.as_ref()),
            ("api", api),
            ("job", self.job.as_ref()),
        ];
        files.into_iter().filter_map(|(role, file)| Some((role, file?.as_path())))
    }

    /// The files that make up the tenant besides its manifest, by the names that the manifest has for them: its
    /// components, and the files with its secrets.
    pub fn files(&self) -> Vec<PathBuf> {
        self.named.iter().cloned().chain(self.grants.files.iter().cloned()).collect()
    }
}

/// `components.api`.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Its `.wasm`.
    pub file: PathBuf,
    /// Calls that one instance serves; 1 with `isolation = "call"`.
    pub reuse: u32,
}

impl ApiConfig {
    /// Few enough that what leaks in an instance does not pile up. Making the next instance is a thousandth of the
    /// work.
    pub(crate) const REUSE: u32 = 1000;
}

/// One `[[schedule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleConfig {
    pub name: Arc<str>,
    pub every: Duration,
    /// From the start of the relay to the first tick; `every` unless the manifest says otherwise.
    pub after: Duration,
}

/// One `[channels."pattern"]`: a channel's name, or a prefix and `*`.
#[derive(Clone, Debug)]
pub struct ChannelRule {
    pub pattern: String,
    /// Most bytes of encoded frames that the channel's log keeps.
    pub log_bytes: usize,
    /// What happens to a client that falls off the log's end. `None`: it is conflated if the channel has keys, else
    /// closed.
    pub slow: Option<Slow>,
    /// How far back clients may resume and read.
    pub history: History,
    /// Most keys in the channel's snapshot.
    pub max_keys: usize,
    /// Whether new clients get the snapshot first.
    pub snapshot: bool,
}

impl ChannelRule {
    /// The log of a channel without a rule.
    pub(crate) const LOG_BYTES: usize = 16 << 20;
    pub(crate) const MAX_KEYS: usize = 10_000;
}

impl Default for ChannelRule {
    fn default() -> Self {
        Self {
            pattern: String::new(),
            log_bytes: Self::LOG_BYTES,
            slow: None,
            history: History::default(),
            max_keys: Self::MAX_KEYS,
            snapshot: true,
        }
    }
}

/// `slow`: what happens to a client that falls off its channel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// It gets the latest publication of each key that changed, then the publications that follow.
    Conflate,
    /// It goes on at the newest publication.
    Skip,
    /// It is closed with 1013.
    Close,
}

/// `history`: how much of a channel's log clients may read again.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Most publications.
    pub size: u64,
    pub age: Duration,
    /// Most bytes of the log.
    pub bytes: usize,
    /// Whether the history is kept while nobody follows the channel. It is if the manifest sets any of these.
    pub kept: bool,
}

impl Default for History {
    /// All that the log has.
    fn default() -> Self {
        Self { size: u64::MAX, age: Duration::MAX, bytes: usize::MAX, kept: false }
    }
}

/// What one tenant's state may hold.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Most keys in all of its buckets together.
    pub keys: usize,
    /// Most bytes that these keys and their values take.
    pub bytes: usize,
}
