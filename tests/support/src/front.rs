//! A proxy in front of the relay: nginx, HAProxy or Caddy, with the configuration that docs/PROXIES.md has for it.
//! `.ci/setup tests` unpacks the programs. Tests that need one are skipped where it is not there.

use std::{
    env::{consts::ARCH, join_paths},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
};

use tokio::net::{TcpSocket, TcpStream};

use super::{loopback, process::Process, relay::Relay, script::cache, skip::skipped, tenant::Folder, until, within};

const DOCUMENT: &str = include_str!("../../../docs/PROXIES.md");
/// Where the relay listens in the document's configurations.
const CLIENTS: &str = "127.0.0.1:8080";
const API: &str = "127.0.0.1:8081";
/// The name that leads to the API in the document's configurations. All others lead to the clients' address.
pub const API_NAME: &str = "api.relay.example";
/// The document's networks of proxies, and the address from which a proxy of this machine connects.
const TRUSTED: &str = "10.0.0.0/8";
const OWN: &str = "127.0.0.1";
/// The configuration's file.
const CONFIG: &str = "proxy.conf";

/// Makes a test behind each proxy of each of these functions.
#[macro_export]
macro_rules! behind_each_front {
    ($($test:ident),* $(,)?) => {
        mod nginx {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::front::Front::Nginx).await;
            })*
        }

        mod haproxy {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::front::Front::HaProxy).await;
            })*
        }

        mod caddy {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::front::Front::Caddy).await;
            })*
        }
    };
}

/// The proxies that the document has configurations for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    Nginx,
    HaProxy,
    Caddy,
}

/// A running proxy. It ends with the test, even if the test is killed.
pub struct Gateway {
    pub address: SocketAddr,
    _process: Process,
    /// The proxy's folder, removed after the proxy has ended.
    _folder: Folder,
}

impl Front {
    /// Starts the proxy in front of a relay, if the program is there.
    ///
    /// It ends with the thread that starts it. So call this from the test's own thread.
    pub async fn start(self, relay: &Relay) -> Option<Gateway> {
        let root = cache("PROXY_TOOLS", "proxies").join(self.name());
        let (program, arguments) = self.command();
        let program = root.join(program);
        if !program.is_file() {
            return skipped(self.name());
        }
        let folder = Folder::empty();
        let address = TcpListener::bind((loopback(), 0)).unwrap().local_addr().unwrap();
        let mut replacements = self.replacements(address, &folder);
        replacements.extend([(CLIENTS, relay.clients.to_string()), (API, relay.api().to_string())]);
        folder.write(CONFIG, with(block(self.name()), &replacements));
        // `setpriv` has the kernel kill the proxy when this process dies, however it dies.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(arguments).arg(folder.path(CONFIG));
        let libraries = ["usr/lib", "lib"].map(|at| root.join(at).join(format!("{ARCH}-linux-gnu")));
        command.env("LD_LIBRARY_PATH", join_paths(libraries).unwrap());
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env(variable, folder.path(""));
        }
        let mut process = Process::spawn(command);
        until("the proxy's listener", async || {
            if let Some(status) = process.ended() {
                panic!("{status}: {}", process.log());
            }
            TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Some(Gateway { address, _process: process, _folder: folder })
    }

    /// The name of its folder, and of the language of its block in the document.
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Where the program is in its folder, and its arguments before the configuration's path.
    fn command(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Nginx => ("usr/sbin/nginx", &["-e", "stderr", "-c"]),
            Self::HaProxy => ("usr/sbin/haproxy", &["-db", "-f"]),
            Self::Caddy => ("usr/bin/caddy", &["run", "--adapter", "caddyfile", "--config"]),
        }
    }

    /// What tests have in place of what an operator has: the public address, certificates, accounts, and room for ten
    /// thousand clients.
    fn replacements(self, address: SocketAddr, folder: &Folder) -> Vec<(&'static str, String)> {
        let (ip, port, place) = (address.ip(), address.port(), folder.path(""));
        let place = place.display();
        match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let temporary = temporary.map(|what| format!("{what}_temp_path {place}/{what};\n")).concat();
                vec![
                    // One process, which leaves no others behind when it is killed.
                    ("user www-data;", format!("daemon off;\nmaster_process off;\npid {place}/pid;")),
                    ("worker_connections 20000;", "worker_connections 200;".to_owned()),
                    ("listen 443 ssl http2;", format!("listen {address};")),
                    ("ssl_certificate /etc/ssl/relay.example.pem;", format!("access_log off;\n{temporary}")),
                    ("ssl_certificate_key /etc/ssl/relay.example.key;", String::new()),
                ]
            }
            Self::HaProxy => vec![
                ("user haproxy", String::new()),
                ("group haproxy", String::new()),
                ("maxconn 20000", "maxconn 200".to_owned()),
                ("bind :443 ssl crt /etc/haproxy/relay.example.pem alpn h2,http/1.1", format!("bind {address}")),
            ],
            Self::Caddy => vec![
                ("\nrelay.example {", format!("{{\nadmin off\ndefault_bind {ip}\n}}\nhttp://:{port} {{")),
                ("\napi.relay.example {", format!("\nhttp://{API_NAME}:{port} {{")),
            ],
        }
    }
}

impl Gateway {
    /// Connects from this address of this machine. A relay behind the proxy can tell it from the proxy's own.
    pub async fn connect(&self, from: Ipv4Addr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        within("a TCP connection", socket.connect(self.address)).await.unwrap()
    }
}

/// The keys of relay.toml that the document has for a relay behind a proxy.
pub fn relay_keys() -> String {
    with(block("toml"), &[(TRUSTED, OWN.to_owned())])
}

/// The document's first block in this language, with the end of the line before it.
fn block(language: &str) -> &'static str {
    let mut blocks = DOCUMENT.split("\n```").filter_map(|block| block.strip_prefix(language));
    blocks.find(|block| block.starts_with('\n')).unwrap_or_else(|| panic!("docs/PROXIES.md has no block in {language}"))
}

/// A block with other texts in place of some of its own, which must be there.
fn with(block: &str, replacements: &[(&str, String)]) -> String {
    let mut text = format!("{block}\n");
    for (from, to) in replacements {
        assert!(text.contains(from), "docs/PROXIES.md has no `{from}`");
        text = text.replace(from, to);
    }
    text
}
