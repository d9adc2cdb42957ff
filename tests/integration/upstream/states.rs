//! What an upstream says it is doing: the same words at `/readyz`, in the metrics and to components.

use serde_json::{Value, json};
use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder, until};

/// What `/readyz` says of the upstream `feed` of tenant `t`.
pub async fn shown(relay: &Relay) -> Value {
    relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take()
}

/// Waits until `/readyz` and the metric have this word, and no other.
pub async fn is(relay: &Relay, word: &str) -> Value {
    until(format!("the state {word}"), async || {
        let shown = shown(relay).await;
        let mut metrics = Vec::new();
        for state in ["resting", "connecting", "live", "stale"] {
            let labels = [("tenant", "t"), ("upstream", "feed"), ("state", state)];
            if relay.metric("edge_relay_upstream_state", &labels).await == 1.0 {
                metrics.push(state);
            }
        }
        if shown["state"] == word && metrics == [word] { Ok(shown) } else { Err(format!("{shown} and {metrics:?}")) }
    })
    .await
}

#[tokio::test]
async fn one_word_at_a_time_everywhere() {
    let mut partner = Partner::start().await;
    let more = "connect = \"on-demand\"\nlinger = \"1s\"\ndata-timeout = \"4s\"";
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), more)).await;
    assert_eq!(is(&relay, "resting").await, json!({ "state": "resting" }));
    let client = relay.client("/t").await;
    let arrival = partner.arrival().await;
    assert_eq!(is(&relay, "connecting").await, json!({ "state": "connecting" }));
    let mut peer = arrival.upgrade(None).await;
    assert_eq!(is(&relay, "live").await, json!({ "state": "live" }));
    assert_eq!(peer.ended().await, Some(1000));
    let mut peer = partner.accept().await;
    let stale = is(&relay, "stale").await;
    assert!(stale["reason"].as_str().unwrap().contains("no message"), "{stale}");
    peer.text("at last").await;
    is(&relay, "live").await;
    drop(peer);
    // Whether a client is there or not: the pause goes on, but nobody waits for it.
    let pause = is(&relay, "connecting").await;
    assert!(pause["reason"].is_string(), "{pause}");
    drop(client);
    is(&relay, "resting").await;
}

#[tokio::test]
async fn components_are_told_the_state_the_reason_and_the_time() {
    let (mut partner, nobody) = (Partner::start().await, Partner::start().await);
    let other = nobody.url();
    drop(nobody);
    let more = format!("[[upstream]]\nname = \"down\"\nurl = \"{other}\"");
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), &more)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    assert_eq!(probe.ask("status").await, "State::Live None None 0");
    let told = until("a pause", async || match probe.ask("status-of down").await {
        told if told.contains("refused") && told.contains(") Some(") => Ok(told),
        told => Err(told),
    })
    .await;
    assert!(told.starts_with("State::Connecting Some(\""), "{told}");
    assert_eq!(probe.ask("status-of other").await, "unknown");
}
