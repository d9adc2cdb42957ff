//! The servers that are measured, and how each is started.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{place::Place, process::Process};
use crate::failure::{Context, Failure};

const NODE: &str = include_str!("../../peers/ws.js");
const BUN: &str = include_str!("../../peers/bun.js");
const NGINX: &str = include_str!("../../peers/nginx.conf");
const RELAY: &str = include_str!("../../relay/relay.toml");
const TENANT: &str = include_str!("../../relay/tenant.toml");
const PLAIN: &str = include_str!("../../relay/plain.toml");
const NGINX_PROGRAM: &str = "nginx/usr/sbin/nginx";
const NCHAN_MODULE: &str = "nginx/usr/lib/nginx/modules/ngx_nchan_module.so";
/// Open files of one worker, which may get more clients than the other.
const NGINX_FILES: u32 = 12_000;
const NCHAN_MESSAGES: u32 = 20_000;
/// Longest wait until a server is up, with its filter compiled.
const START: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Ceiling,
    Pass,
    Market,
    Bun,
    Nchan,
    Ws,
}

pub struct Server {
    pub process: Process,
    pub version: String,
    /// `ADDRESS/PATH` for clients, and for a feed that connects.
    pub target: String,
    pub publish_to: String,
}

/// A tenant without code: what its only channel does with slow clients, and how long its log is.
pub struct Plain {
    pub slow: &'static str,
    pub log: &'static str,
    /// Messages of at least this many bytes are compressed. `None`: no message is.
    pub compressed_above: Option<usize>,
}

impl Kind {
    /// In the order of the tables.
    pub const ALL: [Self; 6] = [Self::Ceiling, Self::Pass, Self::Market, Self::Bun, Self::Nchan, Self::Ws];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Pass => "pass",
            Self::Market => "market",
            Self::Bun => "bun",
            Self::Nchan => "nchan",
            Self::Ws => "ws",
        }
    }

    pub fn is_ours(self) -> bool {
        matches!(self, Self::Pass | Self::Market)
    }

    /// Whether it cannot keep up with the flood or the bursts.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Nchan | Self::Ws)
    }

    /// The path where a client learns a position to resume from. `None`: clients cannot resume.
    pub fn history(self) -> Option<&'static str> {
        match self {
            Self::Pass => Some("/channels/main"),
            Self::Market => Some("/market/channels/prices"),
            Self::Ceiling | Self::Bun | Self::Nchan | Self::Ws => None,
        }
    }

    /// Whether the feed connects to the server, instead of the server to the feed.
    pub fn is_published_to(self) -> bool {
        self == Self::Nchan
    }

    /// Makes what the server needs, or says what is missing.
    pub fn prepare(self, place: &Place) -> Result<(), Failure> {
        match self {
            Self::Ceiling | Self::Pass => Ok(()),
            Self::Market => place.build_filter(),
            Self::Bun => place.bun().map(drop),
            Self::Nchan => place.tool(NGINX_PROGRAM).and(place.tool(NCHAN_MODULE)).map(drop),
            Self::Ws => place.tool("node_modules/ws").map(drop),
        }
    }

    /// Starts the server for a feed at this address, or for a feed that will publish to it.
    pub fn start(self, feed: &str, place: &Place) -> Result<Server, Failure> {
        match self {
            Self::Ceiling => Server::start(self, "bare epoll server (ceiling)", &place.own(&["ceiling", feed]), place),
            Self::Pass => {
                let mut command = Command::new(&place.relay);
                command.args(["pass", "--listen", "127.0.0.1:0", "--upstream", &format!("ws://{feed}/")]);
                Server::start(self, "`edge-relay pass`", &command, place)
            }
            Self::Market => {
                place.write("relay.toml", RELAY)?;
                place.write("tenants/market/tenant.toml", &TENANT.replace("FEED", feed))?;
                let command = serve("relay.toml", place);
                Server::start(self, "`edge-relay serve`, filter of `market`", &command, place)
            }
            Self::Bun => Server::start_bun(feed, false, place),
            Self::Ws => {
                let mut command = Command::new("node");
                command.arg(place.write("ws.js", NODE)?).arg(format!("ws://{feed}/"));
                command.env("NODE_PATH", place.tool("node_modules")?);
                Server::start(self, "", &command, place)
            }
            Self::Nchan => Server::start_nginx(false, place),
        }
    }
}

impl Plain {
    pub fn start(&self, feed: &str, place: &Place) -> Result<Server, Failure> {
        // The server gets a folder of its own. Otherwise the sample tenant would be served too.
        place.write("plain/relay.toml", RELAY)?;
        let compression = self.compressed_above.map(|above| format!("compression = {{ above = {above} }}"));
        let manifest = PLAIN
            .replace("COMPRESSION", &compression.unwrap_or_default())
            .replace("FEED", feed)
            .replace("SLOW", self.slow)
            .replace("LOG", self.log);
        place.write("plain/tenants/plain/tenant.toml", &manifest)?;
        Server::start(Kind::Pass, "`edge-relay serve`", &serve("plain/relay.toml", place), place)
    }
}

fn serve(config: &str, place: &Place) -> Command {
    let mut command = Command::new(&place.relay);
    command.args(["serve", "--config", config]);
    command
}

impl Server {
    /// Starts a server that prints `listening` and its address. If `version` is empty, it prints its version first.
    fn start(kind: Kind, version: &str, command: &Command, place: &Place) -> Result<Self, Failure> {
        let process = Process::start(kind.name(), command, &place.scratch)?;
        let version = if version.is_empty() { process.line("version", START)? } else { version.to_owned() };
        // The line is `listening ADDRESS`. The relay prints `listening clients=ADDRESS …`.
        let listening = process.line("listening ", START)?;
        let address = listening.split_whitespace().next().unwrap_or_default().trim_start_matches("clients=");
        let path = if kind == Kind::Market { "market?channel=prices" } else { "" };
        let target = format!("{address}/{path}");
        Ok(Self { process, version, target, publish_to: String::new() })
    }

    pub fn start_bun(feed: &str, compressed: bool, place: &Place) -> Result<Self, Failure> {
        let mut command = Command::new(place.bun()?);
        command.arg(place.write("bun.js", BUN)?).arg(format!("ws://{feed}/"));
        command.args(compressed.then_some("compressed"));
        Self::start(Kind::Bun, "", &command, place)
    }

    pub fn start_nginx(compressed: bool, place: &Place) -> Result<Self, Failure> {
        // nginx cannot be asked for the port it has taken, so it is given one that was free a moment ago.
        let address = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let address = address.context("a free port")?.to_string();
        let module = place.tool(NCHAN_MODULE)?.display().to_string();
        let conf = NGINX
            .replace("MODULE", &module)
            .replace("ADDRESS", &address)
            .replace("FILES", &NGINX_FILES.to_string())
            .replace("CONNECTIONS", &NGINX_FILES.to_string())
            .replace("DEFLATE", if compressed { "on" } else { "off" })
            .replace("MESSAGES", &NCHAN_MESSAGES.to_string());
        let mut command = Command::new(place.tool(NGINX_PROGRAM)?);
        command.arg("-p").arg(&place.scratch).args(["-e", "stderr", "-c"]).arg(place.write("nginx.conf", &conf)?);
        let process = Process::start(Kind::Nchan.name(), &command, &place.scratch)?;
        let until = Instant::now() + START;
        while TcpStream::connect(&address).is_err() {
            let waits = (Instant::now() < until).then_some(());
            waits.with_context(|| format!("nginx does not listen ({})", process.last_words()))?;
            thread::sleep(Duration::from_millis(20));
        }
        let version = fs::read_to_string(place.tool("nginx/version")?).context("nginx's version")?;
        let version = format!("{}, 2 workers", version.trim());
        Ok(Self { process, version, target: format!("{address}/subscribe"), publish_to: format!("{address}/publish") })
    }
}
