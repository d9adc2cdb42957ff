//! `edge-relay demo`: everything from a partner to a client on one machine, with nothing else installed.

use std::{fs, fs::DirBuilder, io, net::SocketAddr, os::unix::fs::DirBuilderExt, path::PathBuf, time::Duration};

use clap::Args;
use config;
use futures_util::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{
    command::{Failure, announce, demo::page::Addresses, io_runtime},
    component::build::componentize,
    entry, feed,
    feed::{Feed, FeedSource, Sent},
    relay::{Relay, Strictness},
    shutdown,
    shutdown::on_signals,
    store, telemetry,
};

mod page;

/// The sample tenant from the repository. Its components are compiled along with the host.
const MANIFEST: &str = include_str!("../../../components/market/tenant.toml");
const FILTER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/market-filter.wasm"));
const CLIENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/market-client.wasm"));
const API: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/market-api.wasm"));
const JOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/market-job.wasm"));
/// The partner in the sample's manifest. The simulated exchange takes its place.
const PARTNER: &str = "wss://ws-feed.exchange.coinbase.com";
/// Messages a second of the simulated exchange.
const RATE: f64 = 50.0;
const LOOPBACK: &str = "127.0.0.1:0";

/// Shows the relay at work: a simulated exchange, the sample tenant's filter, a client, and a page to open in a browser.
///
/// Everything runs in this process, on free ports of 127.0.0.1. Prints the page's URL first, then one line per second
/// with what the client gets, until it is interrupted.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay demo
  edge-relay demo --listen 127.0.0.1:8000
  edge-relay demo --for 10s")]
pub struct Demo {
    /// Where the page is served; with a port of your own, a bookmark lasts and an open page finds the next demo again.
    #[arg(long, value_name = "ADDR", default_value = LOOPBACK)]
    listen: SocketAddr,
    /// Ends by itself after this time, for example 10s or 2m; fails if nothing was relayed.
    #[arg(long = "for", value_name = "TIME", value_parser = config::duration)]
    time: Option<Duration>,
}

impl Demo {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("warn").map_err(Failure::usage)?;
        let ((leave, _), (trigger, stop)) = (shutdown::stop(), shutdown::stop());
        let signals = on_signals(leave, trigger).map_err(Failure::failed)?;
        let runtime = io_runtime()?;
        let _entered = runtime.enter();
        let page = entry::bind(self.listen, &[])
            .map_err(|error| Failure::failed(format!("cannot listen on {}: {error}", self.listen)))?;
        let page_address = page.local_addr().map_err(Failure::failed)?;
        let loopback = LOOPBACK.parse().map_err(Failure::failed)?;
        let exchange = entry::bind(loopback, &[]).map_err(Failure::failed)?;
        let address = exchange.local_addr().map_err(Failure::failed)?;

        let files = Files::write(address).map_err(Failure::failed)?;
        let relay = Relay::bind(
            config::load(&files.folder.join("relay.toml"), store::parse_mysql_url).map_err(Failure::failed)?,
            Strictness::Strict,
        )?;
        let (clients, api, admin) = (relay.clients, relay.api, relay.admin);
        signals.serve(Duration::ZERO);
        announce(&format!("page               http://{page_address}/"))?;
        announce(&format!("simulated exchange ws://{address}"))?;
        announce(&format!("clients connect to ws://{clients}/market?channel=prices"))?;
        if let Some(admin) = admin {
            announce(&format!("metrics            http://{admin}/metrics"))?;
        }

        let (finish, finished) = shutdown::stop();
        let sent = Sent::default();
        let feed = Feed { source: FeedSource::Simulated { rate: RATE }, start_after: Duration::ZERO };
        let received = runtime.block_on(async {
            let addresses = Addresses {
                clients: format!("ws://{clients}/market"),
                api: api.map(|api| format!("http://{api}/market")),
            };
            let showing = page::run(page, addresses, finished.clone());
            let relaying = relay.run(finished.clone(), finished);
            let playing = feed::serve(exchange, feed, sent.clone());
            let watching = async {
                let received = watch(clients, &sent, self.time, stop).await;
                finish.pull();
                received
            };
            tokio::select! {
                (received, (), ()) = async { tokio::join!(watching, relaying, showing) } => received,
                never = playing => match never {},
            }
        })?;
        announce(&format!("{} messages in from the exchange, {received} out to the client", sent.get()))?;
        if received == 0 { Err(Failure::failed("nothing was relayed")) } else { Ok(()) }
    }
}

/// Connects like any other client and prints one line per second with what it gets. Returns the number of messages.
async fn watch(
    clients: SocketAddr,
    sent: &Sent,
    time: Option<Duration>,
    mut stop: shutdown::Stop,
) -> Result<u64, Failure> {
    let (mut socket, _) =
        connect_async(format!("ws://{clients}/market?channel=prices")).await.map_err(Failure::failed)?;
    let started = Instant::now();
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    second.tick().await;
    let (mut received, mut latest) = (0, String::new());
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    received += 1;
                    latest = text.to_string();
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::failed(error)),
                None => return Err(Failure::failed("the relay closed the client's connection")),
            },
            _ = second.tick() => {
                let seconds = started.elapsed().as_secs();
                announce(&format!("{seconds:>4} s  in {:>6}  out {received:>6}  {latest}", sent.get()))?;
            }
            () = sleep_until(started + time.unwrap_or_default()), if time.is_some() => return Ok(received),
            () = stop.wait() => return Ok(received),
        }
    }
}

/// The demonstration's configuration, in a folder that is removed when this is dropped.
struct Files {
    folder: PathBuf,
}

impl Files {
    fn write(exchange: SocketAddr) -> io::Result<Self> {
        let files = Self { folder: std::env::temp_dir().join(format!("edge-relay-demo-{}", std::process::id())) };
        let tenant = files.folder.join("tenants/market");
        // The folder must be new: everybody may write to the folder of temporary files.
        DirBuilder::new().mode(0o700).create(&files.folder)?;
        fs::create_dir_all(&tenant)?;
        let listen = ["clients", "api", "admin"].map(|name| format!("{name} = \"{LOOPBACK}\"\n")).concat();
        // The simulated exchange is on this machine.
        let grants = "[grants]\nnetworks = [\"127.0.0.1\"]\n";
        let relay = format!("tenants = \"tenants\"\n[listen]\n{listen}{grants}");
        fs::write(files.folder.join("relay.toml"), relay)?;
        fs::write(tenant.join("tenant.toml"), MANIFEST.replace(PARTNER, &format!("ws://{exchange}")))?;
        for (role, module) in [("filter", FILTER), ("client", CLIENT), ("api", API), ("job", JOB)] {
            fs::write(tenant.join(format!("{role}.wasm")), componentize(module).map_err(io::Error::other)?)?;
        }
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the demonstration's files could not be removed");
        }
    }
}
