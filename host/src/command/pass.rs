//! `edge-relay pass`: a relay without code or files.

use std::net::SocketAddr;

use clap::Args;
use config::{ChannelRule, HostLimits, Listen, RelayConfig, TenantConfig, UpstreamConfig};
use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};

use crate::{
    command::{Failure, announce, io_runtime},
    relay::{Relay, Strictness},
    shutdown,
    shutdown::on_signals,
    telemetry,
};

/// There is only one channel, so its log may be longer than a tenant's.
const LOG_BYTES: usize = 64 << 20;

/// Relays every message of one upstream to every client, unchanged.
///
/// Holds one connection to the upstream, whatever the number of clients, and reconnects when it is lost. Clients
/// connect to ws://ADDR/. Prints `listening clients=ADDR` once it is ready. Opens no other listener.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay pass --upstream wss://feed.example.com/stream
  edge-relay pass --upstream ws://127.0.0.1:9000 --listen 127.0.0.1:8080 --header 'Authorization: Bearer abc'")]
pub struct Pass {
    /// The partner's ws:// or wss:// address.
    #[arg(long, value_name = "URL", value_parser = upstream_url)]
    upstream: Uri,
    /// Where clients connect; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A header for the upstream's handshake; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// A subprotocol to offer the upstream; may be given several times.
    #[arg(long = "subprotocol", value_name = "NAME")]
    subprotocols: Vec<String>,
}

impl Pass {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("info").map_err(Failure::usage)?;
        let runtime = io_runtime()?;
        let _entered = runtime.enter();
        let (trigger, stop) = shutdown::stop();
        let relay = Relay::bind(self.config(), Strictness::Strict)?;
        on_signals(trigger).map_err(Failure::failed)?;
        announce(&format!("listening clients={}", relay.clients))?;
        runtime.block_on(relay.run(stop));
        Ok(())
    }

    fn config(self) -> RelayConfig {
        let upstream = UpstreamConfig {
            name: "upstream".into(),
            url: self.upstream,
            headers: self.headers,
            subprotocols: self.subprotocols,
            idle_timeout: UpstreamConfig::IDLE_TIMEOUT,
            max_message: UpstreamConfig::MAX_MESSAGE,
            linger: None,
        };
        let channel = ChannelRule { pattern: "*".into(), log_bytes: LOG_BYTES, ..ChannelRule::default() };
        let tenant = TenantConfig { upstreams: vec![upstream], channels: vec![channel], ..TenantConfig::new("pass") };
        RelayConfig {
            listen: Listen { clients: self.listen, api: None, admin: None },
            trusted_proxies: Vec::new(),
            limits: HostLimits::default(),
            store: None,
            cache: None,
            tenants: vec![tenant],
            refused: Vec::new(),
            folder: None,
        }
    }
}

fn upstream_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (url.scheme_str(), url.host()) {
        (Some("ws" | "wss"), Some(_)) => Ok(url),
        _ => Err("it must begin with ws:// or wss:// and name a host".into()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as 'Name: value'")?;
    let name = name.trim().parse().map_err(|error| format!("{error}"))?;
    let value = value.trim().parse().map_err(|error| format!("{error}"))?;
    Ok((name, value))
}
