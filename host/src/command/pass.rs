//! `edge-relay pass`: a relay without code or files.

use std::net::SocketAddr;

use clap::Args;
use config::{
    ChannelRule, ClientAddress, Credential, HeaderNames, HostLimits, Listen, PartnerUrl, RelayConfig, Subprotocols,
    TenantConfig, TenantLimits, UpstreamConfig, header_value,
};
use hyper::header::HeaderName;

use crate::{
    command::{Failure, announce, io_runtime},
    relay::{Relay, Strictness},
    shutdown, telemetry,
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
    #[arg(long, value_name = "URL", value_parser = PartnerUrl::parse)]
    upstream: PartnerUrl,
    /// Where clients connect; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A header for the upstream's handshake; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
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
        let relay = Relay::bind(self.config().map_err(Failure::usage)?, Strictness::Strict)?;
        shutdown::without_notice(trigger).map_err(Failure::failed)?;
        announce(&format!("listening clients={}", relay.clients))?;
        runtime.block_on(relay.run(stop.clone(), stop));
        Ok(())
    }

    /// Checks what the manifest of a tenant would be checked for.
    fn config(self) -> Result<RelayConfig, String> {
        let mut upstream = UpstreamConfig::new("upstream", self.upstream);
        let mut names = HeaderNames::default();
        for written in &self.headers {
            upstream.headers.push(header(written, &mut names)?);
        }
        let mut offered = Subprotocols::default();
        for text in &self.subprotocols {
            offered.add(text).map_err(|why| format!("--subprotocol {text:?} {why}"))?;
        }
        upstream.subprotocols = offered.into_offered();
        let channel = ChannelRule { pattern: "*".into(), log_bytes: LOG_BYTES, ..ChannelRule::default() };
        // There is no other tenant to leave room to.
        let most = TenantLimits::MOST.publications_per_second;
        let limits = TenantLimits { publications_per_second: most, ..TenantLimits::default() };
        let (upstreams, channels) = (vec![upstream], vec![channel]);
        let tenant = TenantConfig { upstreams, channels, limits, ..TenantConfig::new("pass") };
        Ok(RelayConfig {
            listen: Listen { clients: vec![self.listen], ..Listen::default() },
            trusted_proxies: Vec::new(),
            client_address: ClientAddress::default(),
            limits: HostLimits::default(),
            proxy: None,
            store: None,
            cache: None,
            tenants: vec![tenant],
            refused: Vec::new(),
            folder: None,
        })
    }
}

/// Problems do not repeat the value.
fn header(written: &str, names: &mut HeaderNames) -> Result<(HeaderName, Credential), String> {
    let (name, value) = written.split_once(':').ok_or("--header: write it as 'Name: value'")?;
    let named = names.add(name.trim()).map_err(|why| format!("--header {:?} {why}", name.trim()))?;
    let value = value.trim();
    header_value(value).map_err(|why| format!("--header {named}: the value {why}"))?;
    Ok((named, Credential::Plain(value.into())))
}
