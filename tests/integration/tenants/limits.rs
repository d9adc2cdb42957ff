//! The limits of a tenant: the one that goes over is told, the limit's metric counts it, and other tenants do not
//! notice.

use rustix::process::Signal;
use std::{fs, path::PathBuf};
use support::{client::Client, guests, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

mod clients;
mod code;
mod host;
mod pools;
mod publishing;
mod rates;
mod sending;

/// How often a limit of tenant `t` has refused something.
async fn refusals(relay: &Relay, limit: &str) -> f64 {
    relay.metric("edge_relay_limit_refusals_total", &[("tenant", "t"), ("limit", limit)]).await
}

async fn refusals_reach(relay: &Relay, limit: &str, least: f64) {
    relay.metric_reaches("edge_relay_limit_refusals_total", &[("tenant", "t"), ("limit", limit)], least).await;
}

/// A relay whose tenant `t` has these limits, and the handler that does what clients tell it.
async fn handled(limits: &str) -> Relay {
    Relay::serve(Folder::new("").handled("t", guests::handler(), &format!("[limits]\n{limits}"))).await
}

async fn ask(client: &mut Client, command: &str) -> String {
    client.send(Message::text(command)).await;
    client.text().await
}

/// The manifest of a running tenant, which a test changes.
struct Manifest {
    path: PathBuf,
    text: String,
}

impl Manifest {
    fn of(folder: &Folder, tenant: &str) -> Self {
        let path = folder.path(&format!("tenants/{tenant}/tenant.toml"));
        Self { text: fs::read_to_string(&path).unwrap(), path }
    }

    /// Changes a part of the manifest, tells the relay to look, and waits until this many changes had this outcome.
    async fn change(&mut self, relay: &Relay, from: &str, to: &str, outcome: &str, times: f64) {
        assert!(self.text.contains(from), "{}", self.text);
        self.text = self.text.replace(from, to);
        fs::write(&self.path, &self.text).unwrap();
        relay.signal(Signal::HUP);
        relay.metric_reaches("edge_relay_tenant_swaps_total", &[("outcome", outcome)], times).await;
    }
}
