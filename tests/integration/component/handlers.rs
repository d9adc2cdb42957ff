//! Client handlers: which clients they let in, what becomes of their actions, and what a broken call costs.

use support::{client::Client, guests, relay::Relay, tenant::Folder, until};
use tokio_tungstenite::tungstenite::Message;

mod actions;
mod bounds;
mod broken;
mod connecting;
mod leaving;
mod order;
mod slow;

const CLIENT: [(&str, &str); 2] = [("tenant", "t"), ("role", "client")];
/// A call that lasts until another client sends [`RELEASE`], or the call's time is over.
const HOLD: &str = "hold key";
const RELEASE: &str = "set key here\nreply released";
const ERROR_100: &str = r#"{"error":{"code":100,"message":"the message could not be handled"}}"#;
const ERROR_111: &str = r#"{"error":{"code":111,"dropped":1,"message":"too many messages wait"}}"#;

/// A relay whose tenant `t` has these limits, and the handler that does what clients tell it.
async fn relay(limits: &str) -> Relay {
    relay_with("", limits).await
}

/// Such a relay with limits of the host too.
async fn relay_with(host_limits: &str, limits: &str) -> Relay {
    let limits = format!("[limits]\n{limits}");
    Relay::serve(Folder::new(host_limits).handled("t", guests::handler(), &limits)).await
}

/// Sends a command and waits for the first answer.
async fn ask(client: &mut Client, command: &str) -> String {
    client.send(Message::text(command)).await;
    client.text().await
}

/// Returns the next texts, sorted: publications of one call keep their order only within a channel.
async fn texts<const N: usize>(client: &mut Client) -> [String; N] {
    let mut texts = [const { String::new() }; N];
    for text in &mut texts {
        *text = client.text().await;
    }
    texts.sort();
    texts
}

/// Sends a command that takes long, and waits until an instance has it.
async fn keep_busy(relay: &Relay, client: &mut Client, command: &str) {
    client.send(Message::text(command)).await;
    // The answer comes after the command: by now the command is in the inbox, or has left it.
    client.settle().await;
    queue_is(relay, 0).await;
}

/// Waits until this many messages wait for the handler.
async fn queue_is(relay: &Relay, wanted: u32) {
    until(format!("{wanted} messages that wait"), async || {
        let waiting = relay.metric("edge_relay_guest_queue", &CLIENT).await;
        if waiting == f64::from(wanted) { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
}

/// How many calls failed.
async fn failures(relay: &Relay, blame: &str, reason: &str) -> f64 {
    let [tenant, role] = CLIENT;
    relay.metric("edge_relay_guest_failures_total", &[tenant, role, ("blame", blame), ("reason", reason)]).await
}
