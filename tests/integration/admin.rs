//! What the admin listener tells probes and scrapers.

use serde_json::json;
use support::{
    partner::Partner,
    relay::{Relay, http, status},
    tenant::Folder,
    until, within,
};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn upstreams_that_are_down_are_in_the_body_of_a_ready_relay() {
    let (mut up, mut down) = (Partner::start().await, Partner::start().await);
    down.stop().await;
    let folder = Folder::new("").tenant("one", &up.url(), "").tenant("two", &down.url(), "");
    let relay = Relay::serve(folder).await;
    let peer = up.accept().await;
    let expected =
        json!({ "one": { "upstreams": { "feed": "live" } }, "two": { "upstreams": { "feed": "connecting" } } });
    shows(&relay, &expected).await;
    let (status, body) = relay.get("/healthz").await;
    assert_eq!(status, 200, "{body}");

    drop(peer);
    up.stop().await;
    let expected =
        json!({ "one": { "upstreams": { "feed": "connecting" } }, "two": { "upstreams": { "feed": "connecting" } } });
    shows(&relay, &expected).await;
}

async fn shows(relay: &Relay, tenants: &serde_json::Value) {
    until(format!("{tenants} at /readyz"), async || match relay.states().await {
        states if states == *tenants => Ok(()),
        states => Err(states.to_string()),
    })
    .await;
}

#[tokio::test]
async fn metrics_follow_clients_and_deliveries() {
    const TENANT: [(&str, &str); 1] = [("tenant", "t")];
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut peer = partner.accept().await;
    let mut clients = vec![relay.client("/t").await, relay.client("/t").await, relay.client("/t").await];
    assert_eq!(relay.metric("edge_relay_clients", &TENANT).await, 3.0);
    for nth in 0..5 {
        peer.text(nth.to_string()).await;
    }
    for client in &mut clients {
        for nth in 0..5 {
            assert_eq!(client.text().await, nth.to_string());
        }
    }
    relay.metric_reaches("edge_relay_deliveries_total", &TENANT, 15.0).await;
    assert_eq!(relay.metric_reaches("edge_relay_publications_total", &TENANT, 5.0).await, 5.0);
    assert_eq!(relay.metric("edge_relay_upstream_messages_total", &TENANT).await, 5.0);
    assert_eq!(
        relay.metric("edge_relay_upstream_state", &[("tenant", "t"), ("upstream", "feed"), ("state", "live")]).await,
        1.0
    );
    clients.clear();
    relay.clients_closed("client", 3.0).await;
    until("nobody left", async || match relay.metric("edge_relay_clients", &TENANT).await {
        0.0 => Ok(()),
        clients => Err(clients.to_string()),
    })
    .await;
    assert_eq!(relay.metric("edge_relay_clients_accepted_total", &TENANT).await, 3.0);
    assert_eq!(relay.metric("edge_relay_deliveries_total", &TENANT).await, 15.0);
}

/// Every family has its type and its help, and every sample a family. Families that count by a reason are left out
/// until the reason occurs. Other tests make each occur.
#[tokio::test]
async fn metrics_are_in_prometheus_text_format() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    drop(partner.accept().await);
    relay.upstream_failed("reset", 1.0).await;
    let mut client = relay.client("/t").await;
    client.send(Message::text("to nobody")).await;
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &[("reason", "no_handler")], 1.0).await;
    let (_, body) = relay.get("/metrics").await;
    let families: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for family in &families {
        assert!(body.contains(&format!("# HELP {family} ")), "{family} has no help");
        assert!(family.starts_with("edge_relay_"), "{family}");
    }
    for wanted in [
        "edge_relay_upstream_state",
        "edge_relay_upstream_connections",
        "edge_relay_upstream_failures",
        "edge_relay_upstream_messages",
        "edge_relay_upstream_bytes",
        "edge_relay_publications",
        "edge_relay_clients",
        "edge_relay_clients_accepted",
        "edge_relay_deliveries",
        "edge_relay_client_messages_dropped",
    ] {
        assert!(families.contains(&wanted), "{wanted} is not among {families:?}");
    }
    let samples: Vec<_> = body.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(samples.len() > 5, "{body}");
    for sample in samples {
        let (series, value) = sample.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{sample}");
        assert!(families.iter().any(|family| series.starts_with(family)), "{sample}");
    }
}

#[tokio::test]
async fn it_answers_nothing_else() {
    let partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    assert_eq!(relay.get("/").await.0, 404);
    assert_eq!(relay.get("/t").await.0, 404);
    // The clients' listener serves none of these.
    for path in ["/metrics", "/readyz"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, body) = within(path, http(relay.clients, &request)).await;
        assert_eq!(status(&head), 404, "{body}");
    }
}
