//! `relay.toml` and the folder of tenants it names.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    Bounds, ClientAddress, HostLimits, Listen, RelayConfig, TenantCaps, TenantConfig,
    document::{Document, Problems, Table, Value, quote},
    file::read_file,
    relay::{
        operator::{HostFiles, allowed, network},
        proxy::proxy,
        store::store,
    },
    tenants::{Tenants, TenantsFolder},
};

mod operator;
mod proxy;
mod secret;
mod store;

/// Where clients connect by default.
const LISTEN_CLIENTS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);

/// Where the API is by default.
const LISTEN_API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8081);

/// Where the admin listener is by default: out of reach of other machines.
const LISTEN_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// One machine holds fewer sockets than the top of the range.
const CLIENTS: RangeInclusive<u64> = 1..=16_000_000;

/// Each handshake under way holds a task and buffers of some 10 KiB.
const HANDSHAKES: RangeInclusive<u64> = 1..=1_000_000;

/// Each connection holds a task and a buffer of some 10 KiB.
const API_CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;

/// All bits of an IPv6 address, or as few as a large network has.
const IPV6_PREFIX: RangeInclusive<u64> = 16..=128;

/// Below the range a client has hardly time for its next request; above it connections that are forgotten pile up.
const API_IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Below the range a distant client fails; above it connections that never speak pile up.
const HANDSHAKE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(300);

/// Below the range pings are a load of their own; above it proxies cut idle connections first.
const PING_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Below the range a retransmission would pass for a stall.
const STALL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// A balancer that takes longer to notice is set up for something else.
const SHUTDOWN_NOTICE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

/// Supervisors kill a process long before the top of the range.
const SHUTDOWN_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);

/// At the least there is room for the compiler and little else; above the range one component could take a whole
/// machine.
const COMPILE_MEMORY: RangeInclusive<u64> = 64 << 20..=64 << 30;

/// Below the range nothing compiles on a busy host; above it a bad component keeps others waiting.
const COMPILE_TIME: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The range is from one small component to more than any disk should give.
const CACHE_SIZE: RangeInclusive<u64> = 1 << 20..=1 << 44;

/// The default folder for compiled code, beside relay.toml.
const CACHE: &str = "data/cache";
/// A tenant's `memory` limits each instance. Above the range address space runs out.
const INSTANCES: RangeInclusive<u64> = 1..=30_000;

/// The facts about a `mysql://` URL that are checked before there is a connection.
#[derive(Clone, Copy, Debug)]
pub struct MySqlUrl {
    pub has_database: bool,
    pub has_password: bool,
}

/// Parses a URL as the MySQL driver does, or says what is wrong with it. The host passes this in, since this crate has no
/// driver.
pub type MySqlParser = fn(&str) -> Result<MySqlUrl, &'static str>;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{problems}")]
pub struct Invalid {
    pub problems: Problems,
    /// The tenants without mistakes, so that their components can be checked too.
    pub sound: Vec<TenantConfig>,
}

impl Invalid {
    /// What is wrong with a configuration if no tenant may be refused. `None`: nothing.
    pub fn strictly(config: &RelayConfig) -> Option<Self> {
        let problems: Vec<_> = config.refused.iter().flat_map(|refused| refused.problems.0.clone()).collect();
        (!problems.is_empty()).then(|| Self { problems: Problems(problems), sound: config.tenants.clone() })
    }
}

/// Reads `relay.toml` at `path` and every tenant it names, with secrets from the process's environment. A tenant's
/// mistakes are its own: it is refused, and the others are read.
///
/// # Errors
/// Every mistake in `relay.toml`. If there is one, those of all tenants too.
pub fn load(path: &Path, mysql: MySqlParser) -> Result<RelayConfig, Invalid> {
    load_with(path, &|variable| std::env::var(variable).ok(), mysql)
}

/// Reads `relay.toml` at `path` for the host alone. The result has no tenants, and mistakes in their manifests are
/// ignored.
pub fn load_host(path: &Path, mysql: MySqlParser) -> Result<RelayConfig, Problems> {
    let text = read_file(path).map_err(|problem| Problems(vec![problem]))?;
    let document = Document::new(path, &text);
    let secrets = |variable: &str| std::env::var(variable).ok();
    let config = document.parse().ok().and_then(|root| relay(root, path, &secrets, mysql).0);
    document.conclude(config)
}

fn load_with(
    path: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    mysql: MySqlParser,
) -> Result<RelayConfig, Invalid> {
    let text = read_file(path).map_err(|problem| Invalid { problems: Problems(vec![problem]), sound: Vec::new() })?;
    let document = Document::new(path, &text);
    let (config, tenants) = match document.parse() {
        Ok(root) => relay(root, path, secrets, mysql),
        // The tenants' mistakes are worth listing even when only their folder's name could be read.
        Err(mut partial) => {
            let folder = partial.take("tenants").filter(|value| value.value.is_str());
            let bounds = bounds(&mut partial, &HostFiles { relay: path, store: None, cache: None });
            let read = |value| TenantsFolder::read(&value, path, bounds).map(|folder| folder.all(&value, secrets));
            (None, folder.and_then(read).unwrap_or_default())
        }
    };
    match document.conclude(config) {
        Ok(config) => {
            let Tenants { configs, refused, .. } = tenants;
            Ok(RelayConfig { tenants: configs, refused, ..config })
        }
        Err(Problems(mut problems)) => {
            problems.extend(tenants.problems().cloned());
            Err(Invalid { problems: Problems(problems), sound: tenants.configs })
        }
    }
}

fn bounds(root: &mut Table<'_>, files: &HostFiles<'_>) -> Bounds {
    let caps = TenantCaps::read(root.section("tenant-limits"), files.relay);
    Bounds { caps, allowed: Arc::new(allowed(root.section("grants"), files)) }
}

/// Walks `relay.toml`. The tenants are returned apart, since their problems follow those of this file.
fn relay(
    mut root: Table<'_>,
    path: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    mysql: MySqlParser,
) -> (Option<RelayConfig>, Tenants) {
    let named = root.require("tenants", "tenants = \"tenants\", the folder of the tenants' folders");
    let store = store(root.section("store"), path, secrets, mysql);
    let cache = root.take("cache").and_then(|value| value.str().map(str::to_owned)).unwrap_or_else(|| CACHE.into());
    let cache = path.parent().unwrap_or(Path::new("")).join(cache);
    let bounds = bounds(&mut root, &HostFiles { relay: path, store: Some(&store.file), cache: Some(&cache) });
    let folder = named.as_ref().and_then(|value| TenantsFolder::read(value, path, bounds));
    let tenants = named.zip(folder.clone()).map(|(value, folder)| folder.all(&value, secrets)).unwrap_or_default();
    let proxies = root.take("trusted-proxies").and_then(|value| value.array("an array of addresses in quotes"));
    let trusted_proxies = proxies.into_iter().flatten().filter_map(|value| network(&value)).collect();
    let client_address = root.take("client-address").and_then(|value| client_address(&value)).unwrap_or_default();
    let proxy = proxy(&mut root, path.parent().unwrap_or(Path::new("")), secrets);
    let listen = listen(root.section("listen"));
    let limits = limits(root.section("limits"));
    root.finish();
    let (store, cache) = (Some(store), Some(cache));
    let config = RelayConfig {
        listen,
        trusted_proxies,
        client_address,
        limits,
        proxy,
        store,
        cache,
        tenants: Vec::new(),
        refused: Vec::new(),
        folder,
    };
    (Some(config), tenants)
}

fn listen(mut table: Table<'_>) -> Listen {
    let mut claimed: Vec<(SocketAddr, &str)> = Vec::new();
    let mut listener = |key: &'static str, default: SocketAddr| {
        let value = table.take(key);
        let place = value.as_ref().map_or_else(|| table.place.clone(), |value| value.place.clone());
        let addresses = value.and_then(|value| addresses(value, default)).unwrap_or_else(|| vec![default]);
        for address in &addresses {
            match claimed.iter().find(|(other, of)| takes(address, other, *of == key)) {
                Some((_, other)) if *other == key => place.problem(format!("{address} is listed twice; remove one")),
                Some((_, other)) => place.problem(format!(
                    "{address} is listen.{other} already; give listen.{other} and listen.{key} their own ports"
                )),
                None => {}
            }
            claimed.push((*address, key));
        }
        addresses
    };
    let clients = listener("clients", LISTEN_CLIENTS);
    let api = listener("api", LISTEN_API);
    let admin = listener("admin", LISTEN_ADMIN);
    table.finish();
    Listen { clients, api, admin }
}

/// Whether an address cannot be bound beside another one. Those of one listener know of each other: there `[::]` leaves
/// IPv4 to the others.
fn takes(one: &SocketAddr, other: &SocketAddr, same_listener: bool) -> bool {
    let covers = |one: &SocketAddr, other: &SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv4() == other.is_ipv4() || one.is_ipv6() && !same_listener)
    };
    one.port() != 0 && one.port() == other.port() && (one == other || covers(one, other) || covers(other, one))
}

/// The addresses of a listener: one, a list, or a table that has them.
fn addresses(value: Value<'_>, example: SocketAddr) -> Option<Vec<SocketAddr>> {
    if value.value.is_table() {
        let mut table = value.table("a table, such as { address = \"[::]:8080\" }")?;
        let own = table.require("address", &format!("address = \"{example}\""));
        table.finish();
        return own.and_then(|value| listed(value, example));
    }
    listed(value, example)
}

fn listed(value: Value<'_>, example: SocketAddr) -> Option<Vec<SocketAddr>> {
    if !value.value.is_array() {
        return Some(vec![address(&value, example)?]);
    }
    let place = value.place.clone();
    let all = value.array("an address, or an array of addresses in quotes")?;
    if all.is_empty() {
        place.problem(format!("has no address; write for example \"{example}\""));
    }
    let all: Vec<_> = all.iter().filter_map(|value| address(value, example)).collect();
    (!all.is_empty()).then_some(all)
}

fn address(value: &Value<'_>, example: SocketAddr) -> Option<SocketAddr> {
    let text = value.str()?;
    let address = text.parse().ok();
    if address.is_none() {
        value.problem(format!("{} is not an address; write for example \"{example}\"", quote(text)));
    }
    address
}

fn client_address(value: &Value<'_>) -> Option<ClientAddress> {
    let text = value.str()?;
    let known = match text {
        "x-forwarded-for" => ClientAddress::XForwardedFor,
        "cf-connecting-ip" => ClientAddress::CfConnectingIp,
        "x-real-ip" => ClientAddress::XRealIp,
        "forwarded" => ClientAddress::Forwarded,
        "peer" => ClientAddress::Peer,
        _ => {
            let one = "write \"x-forwarded-for\", \"cf-connecting-ip\", \"x-real-ip\", \"forwarded\" or \"peer\"";
            value.problem(format!("{} is no place where a proxy names the client; {one}", quote(text)));
            return None;
        }
    };
    Some(known)
}

fn limits(mut table: Table<'_>) -> HostLimits {
    let default = HostLimits::default();
    let limits = HostLimits {
        clients: table.count("clients", &CLIENTS),
        handshakes: table.count("handshakes", &HANDSHAKES).unwrap_or(default.handshakes),
        api_connections: table.count("api-connections", &API_CONNECTIONS).unwrap_or(default.api_connections),
        ipv6_prefix: table.count("ipv6-prefix", &IPV6_PREFIX).map_or(default.ipv6_prefix, |bits| bits as u32),
        api_idle_timeout: table.duration("api-idle-timeout", &API_IDLE_TIMEOUT).unwrap_or(default.api_idle_timeout),
        handshake_timeout: table.duration("handshake-timeout", &HANDSHAKE_TIMEOUT).unwrap_or(default.handshake_timeout),
        ping_interval: table.duration("ping-interval", &PING_INTERVAL).unwrap_or(default.ping_interval),
        stall_timeout: table.duration("stall-timeout", &STALL_TIMEOUT).unwrap_or(default.stall_timeout),
        shutdown_notice: table.duration("shutdown-notice", &SHUTDOWN_NOTICE).unwrap_or(default.shutdown_notice),
        shutdown_timeout: table.duration("shutdown-timeout", &SHUTDOWN_TIMEOUT).unwrap_or(default.shutdown_timeout),
        compile_memory: table.size("compile-memory", &COMPILE_MEMORY).unwrap_or(default.compile_memory),
        compile_time: table.duration("compile-time", &COMPILE_TIME).unwrap_or(default.compile_time),
        cache_size: table.size("cache-size", &CACHE_SIZE).map_or(default.cache_size, |size| size as u64),
        instances: table.count("instances", &INSTANCES).unwrap_or(default.instances),
    };
    table.finish();
    limits
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::{
        fs, io,
        path::PathBuf,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::ApiConfig;

    /// A folder of its own for each test, removed after it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("edge-relay-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let folder = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(&folder.0).unwrap();
            for (name, text) in files {
                folder.write(name, text.as_bytes());
            }
            folder
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn load(&self) -> Result<RelayConfig, Invalid> {
            load_with(&self.0.join("relay.toml"), &|_| None, |_| Err("is not a MySQL URL"))
        }

        /// The problems of the host's or of tenants, with paths relative to this folder.
        fn problems(&self) -> Vec<String> {
            let prefix = format!("{}/", self.0.display());
            let invalid = match self.load() {
                Ok(config) => Invalid::strictly(&config).unwrap(),
                Err(invalid) => invalid,
            };
            invalid.problems.0.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ONE: (&str, &str) = ("tenants/one/tenant.toml", "name = 'one'");
    const LEAST: (&str, &str) = ("relay.toml", "tenants = 'tenants'");

    #[test]
    fn defaults() {
        let config = Folder::new(&[LEAST, ONE]).load().unwrap();
        assert_eq!(format!("{:?}", config.listen.clients), "[0.0.0.0:8080]");
        assert_eq!(format!("{:?}", config.listen.api), "[0.0.0.0:8081]");
        assert_eq!(format!("{:?}", config.listen.admin), "[127.0.0.1:9090]");
        assert!(config.trusted_proxies.is_empty());
        assert_eq!(config.client_address, ClientAddress::XForwardedFor);
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", HostLimits::default()));
        assert!(config.cache.unwrap().ends_with("data/cache"));
        assert_eq!((&*config.tenants[0].name, config.tenants[0].path.as_str()), ("one", "/one"));
    }

    #[test]
    fn everything_set() {
        let relay = "tenants = 'tenants'\ncache = '/var/cache/code'\ntrusted-proxies = ['10.1.2.3/8', '::1']\n\
            client-address = 'forwarded'\n[listen]\nclients = ['0.0.0.0:80', '[::]:80']\napi = '[::1]:0'\nadmin = { address = '[::]:0' }\n\
            [limits]\nclients = 5\nhandshakes = 6\napi-connections = 8\napi-idle-timeout = '2s'\nhandshake-timeout = '7s'\nping-interval = '0.5s'\n\
            stall-timeout = '1h'\nshutdown-notice = '0s'\nshutdown-timeout = '10ms'\ncompile-memory = '64MiB'\ncompile-time = '1h'\n\
            cache-size = '1MiB'\n";
        let folder = Folder::new(&[("relay.toml", relay), ("tenants/b/tenant.toml", "name = 'a'"), ONE]);
        // Neither a hidden folder nor a file is a tenant.
        folder.write("tenants/.git/config", b"");
        folder.write("tenants/README", b"");
        let config = folder.load().unwrap();
        assert_eq!(format!("{:?}", config.listen.clients), "[0.0.0.0:80, [::]:80]");
        assert_eq!(format!("{:?} {:?}", config.listen.api, config.listen.admin), "[[::1]:0] [[::]:0]");
        assert_eq!(config.limits.api_connections, 8);
        let networks: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
        assert_eq!(config.client_address, ClientAddress::Forwarded);
        assert_eq!(config.limits.api_idle_timeout, Duration::from_secs(2));
        assert_eq!((config.limits.clients, config.limits.handshakes), (Some(5), 6));
        assert_eq!(config.limits.handshake_timeout, Duration::from_secs(7));
        assert_eq!(config.limits.ping_interval, Duration::from_millis(500));
        assert_eq!(config.limits.stall_timeout, Duration::from_secs(3600));
        assert_eq!(config.limits.shutdown_notice, Duration::ZERO);
        assert_eq!(config.limits.shutdown_timeout, Duration::from_millis(10));
        assert_eq!((config.limits.compile_memory, config.limits.cache_size), (64 << 20, 1 << 20));
        assert_eq!(config.limits.compile_time, Duration::from_secs(3600));
        assert_eq!(config.cache, Some(PathBuf::from("/var/cache/code")));
        let names: Vec<_> = config.tenants.iter().map(|tenant| &*tenant.name).collect();
        assert_eq!(names, ["a", "one"]);
    }

    #[test]
    fn every_mistake_in_every_file() {
        let relay = "tenants = 'tenants'\ntrusted-proxies = ['10.0.0.0/99', 1]\ntrusted_proxies = []\n\
            [listen]\nclients = '80'\nadmin = ':9090'\napi = 8081\n\
            [limits]\nping-interval = '1ms'\nhandshakes = 0\nstall-timeout = '1'\napi-connections = 0\n";
        let files = [
            ("relay.toml", relay),
            ("tenants/a/tenant.toml", "name = 'A'\npaht = '/x'\n"),
            ("tenants/b/tenant.toml", "name = 'b\n"),
            ("tenants/c/filter.wasm", ""),
        ];
        let expected = [
            "relay.toml:2: trusted-proxies: \"10.0.0.0/99\" is neither a network nor an address; write for example \"10.0.0.0/8\" or \"::1\"",
            "relay.toml:2: trusted-proxies: must be a string in quotes, not an integer",
            "relay.toml:3: trusted_proxies: unknown key; did you mean `trusted-proxies`?",
            "relay.toml:5: listen.clients: \"80\" is not an address; write for example \"0.0.0.0:8080\"",
            "relay.toml:6: listen.admin: \":9090\" is not an address; write for example \"127.0.0.1:9090\"",
            "relay.toml:7: listen.api: must be a string in quotes, not an integer",
            "relay.toml:9: limits.ping-interval: \"1ms\" is out of range; write \"100ms\" to \"1h\"",
            "relay.toml:10: limits.handshakes: 0 is out of range; write 1 to 1000000",
            "relay.toml:11: limits.stall-timeout: \"1\" is not a duration; write for example \"500ms\", \"30s\" or \"5m\"",
            "relay.toml:12: limits.api-connections: 0 is out of range; write 1 to 1000000",
            "tenants/a/tenant.toml:1: name: \"A\" is not a name; write at most 63 lower-case letters, digits and hyphens, beginning with a letter or digit",
            "tenants/a/tenant.toml:2: paht: unknown key; did you mean `path`?",
            "tenants/b/tenant.toml:1: is not TOML: invalid literal string, expected `'`",
        ];
        assert_eq!(Folder::new(&files).problems(), expected);
    }

    /// A tenant that could read or write them would have the host's power, or more.
    #[test]
    fn no_folder_with_the_hosts_own_files_is_listed() {
        let folder = Folder::new(&[ONE]);
        for path in ["srv/prices", "data/cache/v1", "store/prices", "etc"] {
            fs::create_dir_all(folder.0.join(path)).unwrap();
        }
        std::os::unix::fs::symlink("../data", folder.0.join("etc/link")).unwrap();
        // The cache need not be there yet, and may be named by a link.
        let write = |listed: &str, cache: &str| {
            let text = format!(
                "tenants = 'tenants'\ncache = '{cache}'\nstore.file = 'store/r.sqlite'\ngrants.folders = ['{listed}']\n"
            );
            folder.write("relay.toml", text.as_bytes());
        };
        for cache in ["data/cache", "etc/link/cache", "etc/link/new/cache"] {
            for listed in ["srv", "srv/prices", "store/prices"] {
                write(listed, cache);
                assert!(folder.load().is_ok(), "{listed} {cache}");
            }
            for (listed, what) in [(".", "relay.toml"), ("data", "cache"), ("store", "r.sqlite"), ("etc/link", "cache")]
            {
                write(listed, cache);
                let problems = folder.problems();
                assert_eq!(problems.len(), 1, "{problems:?}");
                let rest = problems[0]
                    .strip_prefix(&format!("relay.toml:4: grants.folders: \"{listed}\" has the host's own "));
                assert!(rest.is_some_and(|rest| rest.contains(what)), "{listed} {cache}: {problems:?}");
            }
        }
        write("data/cache/v1", "data/cache");
        assert!(folder.problems()[0].contains("is in the host's cache of compiled code"), "{:?}", folder.problems());
        // A file that is half read is checked too.
        folder.write("relay.toml", b"tenants = 'tenants'\ngrants.folders = ['.']\n[listen\n");
        assert!(folder.problems().iter().any(|problem| problem.contains("has the host's own")));
    }

    #[test]
    fn tenants_are_read_although_relay_toml_is_half() {
        let found =
            Folder::new(&[("relay.toml", "tenants = 'tenants'\n[listen\n"), ("tenants/a/tenant.toml", "")]).problems();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("relay.toml:2: is not TOML: "), "{found:?}");
        assert_eq!(found[1], "tenants/a/tenant.toml: name: is missing; write for example name = \"market\"");
    }

    #[test]
    fn no_tenants() {
        let folder = Folder::new(&[("relay.toml", "\ntenants = 'tenants'")]);
        assert!(folder.problems()[0].starts_with("relay.toml:2: tenants: \"tenants\" cannot be read ("));
        folder.write("tenants/README", b"");
        fs::create_dir(folder.0.join("tenants/lost+found")).unwrap();
        let config = folder.load().unwrap();
        assert!(config.tenants.is_empty() && config.refused.is_empty(), "tenants may come later");
        folder.write("relay.toml", b"");
        assert!(folder.problems()[0].starts_with("relay.toml: tenants: is missing; "));
        folder.write("relay.toml", b"tenants = 1");
        assert_eq!(folder.problems(), ["relay.toml:1: tenants: must be a string in quotes, not an integer"]);
    }

    #[test]
    fn claims_are_exclusive_and_those_of_wrong_manifests_come_last() {
        let files = [
            LEAST,
            ("tenants/1/tenant.toml", "name = 'a'\nwrong = 1\n"),
            ("tenants/2/tenant.toml", "\nname = 'a'\npath = '/b'\n"),
            ("tenants/3/tenant.toml", "name = 'b'\n"),
        ];
        let expected = [
            "tenants/1/tenant.toml:2: wrong: unknown key; known here: name, hosts, path, upstream, limits, components, schedule, origins, subprotocols, compression, channels, records, settings, grants",
            "tenants/1/tenant.toml:1: name: \"a\" is also the name in tenants/2/tenant.toml; give each tenant its own",
            "tenants/3/tenant.toml:1: path: \"/b\" is also the path in tenants/2/tenant.toml; give each tenant its own",
        ];
        assert_eq!(Folder::new(&files).problems(), expected);
    }

    #[test]
    fn paths_are_apart_and_hosts_the_operators() {
        let files = [
            (
                "relay.toml",
                "tenants = 'tenants'\ngrants.hosts = ['a.example', { host = 'b.example', tenants = ['4'] }]",
            ),
            ("tenants/1/tenant.toml", "name = '1'\npath = '/a/b'\n"),
            ("tenants/2/tenant.toml", "name = '2'\npath = '/a'\n"),
            ("tenants/3/tenant.toml", "name = '3'\npath = '/a/b/c'\n"),
            // Neither of these overlaps another.
            ("tenants/4/tenant.toml", "name = '4'\nhosts = ['A.example', 'b.example']\npath = '/a'\n"),
            ("tenants/5/tenant.toml", "name = '5'\npath = '/'\n"),
            ("tenants/6/tenant.toml", "name = '6'\npath = '/a-b'\n"),
            ("tenants/7/tenant.toml", "name = '7'\nhosts = ['b.example', 'c.example']\npath = '/a/b'\n"),
        ];
        let expected = [
            "tenants/2/tenant.toml:2: path: \"/a\" overlaps \"/a/b\", which is the path in tenants/1/tenant.toml; give each tenant its own",
            "tenants/3/tenant.toml:2: path: \"/a/b/c\" overlaps \"/a/b\", which is the path in tenants/1/tenant.toml; give each tenant its own",
            "tenants/7/tenant.toml:2: hosts: \"b.example\" is the operator's to give; list it in relay.toml: grants.hosts = [\"b.example\"]",
            "tenants/7/tenant.toml:2: hosts: \"c.example\" is the operator's to give; list it in relay.toml: grants.hosts = [\"c.example\"]",
            "tenants/7/tenant.toml:2: hosts: \"b.example/a/b\" overlaps \"/a\", which is the path in tenants/4/tenant.toml; give each tenant its own",
        ];
        assert_eq!(Folder::new(&files).problems(), expected);
    }

    #[test]
    fn listeners_apart() {
        let relay = "tenants = 'tenants'\n[listen]\nclients = '127.0.0.1:9090'\n";
        let expected = "relay.toml:2: listen: 127.0.0.1:9090 is listen.clients already; give listen.clients and listen.admin their own ports";
        assert_eq!(Folder::new(&[("relay.toml", relay), ONE]).problems(), [expected]);
        let relay = "tenants = 'tenants'\n[listen]\napi = '0.0.0.0:8080'\n";
        let expected = "relay.toml:3: listen.api: 0.0.0.0:8080 is listen.clients already; give listen.clients and listen.api their own ports";
        assert_eq!(Folder::new(&[("relay.toml", relay), ONE]).problems(), [expected]);
    }

    #[test]
    fn files_that_cannot_be_read() {
        let folder = Folder::new(&[ONE]);
        assert!(folder.problems()[0].starts_with("relay.toml: cannot be read ("));
        folder.write("relay.toml", b"a = 1\nb = '\xff'\n");
        assert_eq!(folder.problems(), ["relay.toml:2: is not UTF-8; save the file as UTF-8"]);
        let mut large = b"tenants = 'tenants'\n".to_vec();
        large.resize(1 << 20, b'\n');
        folder.write("relay.toml", &large);
        assert!(folder.load().is_ok());
        large.push(b'\n');
        folder.write("relay.toml", &large);
        assert_eq!(folder.problems(), ["relay.toml: is larger than 1MiB; make it smaller"]);
        folder.write(LEAST.0, LEAST.1.as_bytes());
        folder.write("tenants/two/tenant.toml/file", b"");
        let expected = "tenants/two/tenant.toml: is not a file; write the settings in a regular file";
        assert_eq!(folder.problems(), [expected]);
    }

    #[test]
    fn filter_within_its_folder() {
        let manifest = |filter| {
            format!("name = 'one'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\n[components]\nfilter = '{filter}'\n")
        };
        let folder = Folder::new(&[LEAST]);
        folder.write("tenants/one/filter.wasm", b"");
        folder.write("tenants/outside.wasm", b"");
        std::os::unix::fs::symlink("../outside.wasm", folder.0.join("tenants/one/link.wasm")).unwrap();
        std::os::unix::fs::symlink("filter.wasm", folder.0.join("tenants/one/inner.wasm")).unwrap();
        let real = folder.0.join("tenants/one/filter.wasm").canonicalize().unwrap();
        for filter in ["filter.wasm", "./filter.wasm", "inner.wasm"] {
            folder.write(ONE.0, manifest(filter).as_bytes());
            let config = folder.load().unwrap();
            assert_eq!(config.tenants[0].filter.as_ref(), Some(&real));
            assert_eq!(config.tenants[0].files(), [folder.0.join("tenants/one").join(filter)]);
            assert_eq!(config.tenants[0].components().collect::<Vec<_>>(), [("filter", real.as_path())]);
        }
        for (filter, message) in [
            ("../outside.wasm", "is not within the tenant's folder; write for example \"filter.wasm\""),
            ("/etc/passwd", "is not within the tenant's folder; write for example \"filter.wasm\""),
            ("", "is not within the tenant's folder; write for example \"filter.wasm\""),
            ("link.wasm", "leads out of the tenant's folder; put the file itself there"),
            ("none.wasm", "is not in tenants/one; build the component and put it there"),
            (".", "is not a file; name the component's .wasm"),
        ] {
            folder.write(ONE.0, manifest(filter).as_bytes());
            let expected = format!("tenants/one/tenant.toml:6: components.filter: {filter:?} {message}");
            assert_eq!(folder.problems(), [expected]);
        }
    }

    /// Otherwise a link in the folder's place could have another tenant's component run.
    #[test]
    fn a_component_is_opened_beneath_the_folder_that_its_manifest_was_read_from() {
        let folder = Folder::new(&[LEAST]);
        let manifest = "name = 'one'\n[[upstream]]\nname = 'f'\nurl = 'ws://f'\n[components]\nfilter = 'filter.wasm'\n";
        for (name, code) in [("one", "its own"), ("two", "another's")] {
            folder.write(&format!("{name}/tenant.toml"), manifest.as_bytes());
            folder.write(&format!("{name}/filter.wasm"), code.as_bytes());
        }
        fs::create_dir(folder.0.join("tenants")).unwrap();
        let (link, lead) = (folder.0.join("tenants/t"), |to: &str| {
            let next = folder.0.join("next");
            std::os::unix::fs::symlink(to, &next).unwrap();
            fs::rename(next, folder.0.join("tenants/t")).unwrap();
        });
        lead("../one");
        let tenant = folder.load().unwrap().tenants.remove(0);
        let filter = tenant.filter.clone().unwrap();
        let text = io::read_to_string(tenant.open(&filter).unwrap()).unwrap();
        assert_eq!(text, "its own");
        lead("../two");
        let error = tenant.open(&filter).unwrap_err().to_string();
        assert!(error.contains("exchanged"), "{error}");
        lead("../one");
        fs::remove_file(folder.0.join("one/filter.wasm")).unwrap();
        std::os::unix::fs::symlink("../two/filter.wasm", folder.0.join("one/filter.wasm")).unwrap();
        let error = tenant.open(&filter).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{error} {}", link.display());
    }

    #[test]
    fn an_api_is_a_file_or_a_table() {
        let folder = Folder::new(&[LEAST]);
        folder.write("tenants/one/api.wasm", b"");
        let write = |api: &str| folder.write(ONE.0, format!("name = 'one'\n[components]\napi = {api}\n").as_bytes());
        for (api, reuse) in [
            ("'api.wasm'", ApiConfig::REUSE),
            ("{ file = 'api.wasm' }", ApiConfig::REUSE),
            ("{ file = 'api.wasm', reuse = 7 }", 7),
            ("{ file = 'api.wasm', isolation = 'call' }", 1),
        ] {
            write(api);
            let config = folder.load().unwrap().tenants.remove(0);
            let api = config.api.unwrap();
            assert_eq!((api.file, api.reuse), (folder.0.join("tenants/one/api.wasm").canonicalize().unwrap(), reuse));
        }
        for (api, messages) in [
            (
                "1",
                &["api: must be a file's name, or { file = \"api.wasm\", isolation = \"call\" }, not an integer"][..],
            ),
            (
                "'../api.wasm'",
                &["api: \"../api.wasm\" is not within the tenant's folder; write for example \"filter.wasm\""],
            ),
            ("'none.wasm'", &["api: \"none.wasm\" is not in tenants/one; build the component and put it there"]),
            ("{}", &["api.file: is missing; write for example file = \"api.wasm\""]),
            (
                "{ file = 'none.wasm' }",
                &["api.file: \"none.wasm\" is not in tenants/one; build the component and put it there"],
            ),
            ("{ file = 'api.wasm', reuse = 0 }", &["api.reuse: 0 is out of range; write 1 to 1000000000"]),
            (
                "{ file = 'api.wasm', isolation = 'instance' }",
                &[
                    "api.isolation: is not known; write \"call\", or remove it and set how many calls an instance serves: reuse = 1000",
                ],
            ),
            (
                "{ file = 1, isolation = 1, reuse = '9', file_ = 1 }",
                &[
                    "api.file: must be a string in quotes, not an integer",
                    "api.file_: unknown key; did you mean `file`?",
                    "api.isolation: must be a string in quotes, not an integer",
                    "api.reuse: must be an integer, not a string",
                ],
            ),
            (
                "{ file = 'api.wasm', isolation = 'call', reuse = 1 }",
                &["api: has both isolation = \"call\" and reuse; remove one"],
            ),
        ] {
            write(api);
            let mut problems = folder.problems();
            problems.sort();
            let expected: Vec<_> =
                messages.iter().map(|message| format!("tenants/one/tenant.toml:3: components.{message}")).collect();
            assert_eq!(problems, expected, "{api}");
        }
    }
}
