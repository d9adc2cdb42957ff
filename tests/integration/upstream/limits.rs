//! What bounds a tenant's upstreams.

use std::time::{Duration, Instant};

use support::{partner::Partner, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_manifest_with_more_upstreams_than_the_operator_allows_is_refused() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("sound", &partner.url(), "");
    let listed: String =
        (0..33).map(|nth| format!("[[upstream]]\nname = \"f{nth}\"\nurl = \"{}\"\n", partner.url())).collect();
    folder.write("tenants/many/tenant.toml", format!("name = \"many\"\n{listed}"));
    let relay = Relay::serve(folder).await;
    let ready = relay.ready().await;
    let why = ready["refused"]["many"].as_str().unwrap_or_default();
    assert!(why.contains("there are 33, and limits.upstreams is 32"), "{ready}");
    relay.folder().append("tenants/many/tenant.toml", "[limits]\nupstreams = 33\n");
    relay.signal(rustix::process::Signal::HUP);
    let mut peers = Vec::new();
    for _ in 0..34 {
        peers.push(partner.accept().await);
    }
    relay.metric_is("edge_relay_upstream_state", &[("tenant", "many"), ("state", "live")], 33.0).await;
}

/// A tenant without a filter that may publish a hundred times a second, and a partner that sends three hundred messages
/// at once. Returns what its client gets within two seconds.
async fn over_the_rate(overflow: &str) -> (Relay, Vec<usize>) {
    let mut partner = Partner::start().await;
    let more = format!("overflow = \"{overflow}\"\n[limits]\npublications-per-second = 100");
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), &more)).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.burst((0..300).map(|nth| Message::text(nth.to_string()))).await;
    let (began, mut got) = (Instant::now(), Vec::new());
    while got.len() < 300 && began.elapsed() < Duration::from_millis(2500) {
        match tokio::time::timeout(Duration::from_millis(300), client.text()).await {
            Ok(text) => got.push(text.parse().unwrap()),
            Err(_) => break,
        }
    }
    if got.len() == 300 {
        assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    (relay, got)
}

#[tokio::test]
async fn an_upstream_without_a_filter_publishes_no_faster_than_its_tenant_may() {
    let (relay, got) = over_the_rate("wait").await;
    assert_eq!(got, (0..300).collect::<Vec<_>>());
    assert_eq!(relay.metric("edge_relay_upstream_dropped_total", &[]).await, 0.0);
    assert!(relay.metric("edge_relay_upstream_unread_seconds_total", &[("reason", "rate")]).await > 1.0);
    relay.logged(&["WARN", "upstream.name=feed", "publications-per-second"]).await;
}

#[tokio::test]
async fn an_upstream_without_a_filter_may_drop_what_is_over_the_rate_as_one_gap() {
    let (relay, got) = over_the_rate("drop").await;
    assert_eq!(got, (0..100).collect::<Vec<_>>());
    assert_eq!(relay.metric("edge_relay_upstream_dropped_total", &[("reason", "rate")]).await, 200.0);
    assert_eq!(relay.metric("edge_relay_epochs_total", &[("tenant", "t")]).await, 1.0);
}
