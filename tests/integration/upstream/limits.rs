//! What bounds a tenant's upstreams.

use std::time::{Duration, Instant};

use support::{partner::Partner, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_manifest_with_more_upstreams_than_its_limit_is_refused() {
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
/// at once. Returns what its client gets until nothing comes for a while, and how long that took.
async fn over_the_rate(overflow: &str, patience: Duration) -> (Relay, Vec<usize>, Duration) {
    let mut partner = Partner::start().await;
    let more = format!("overflow = \"{overflow}\"\n[limits]\npublications-per-second = 100");
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), &more)).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.burst((0..300).map(|nth| Message::text(nth.to_string()))).await;
    let (began, mut got) = (Instant::now(), Vec::new());
    while got.len() < 300 {
        match tokio::time::timeout(patience, client.text()).await {
            Ok(text) => got.push(text.parse().unwrap()),
            Err(_) => break,
        }
    }
    (relay, got, began.elapsed())
}

#[tokio::test]
async fn an_upstream_without_a_filter_publishes_no_faster_than_its_tenant_may() {
    let (relay, got, took) = over_the_rate("wait", Duration::from_secs(20)).await;
    assert_eq!(got, (0..300).collect::<Vec<_>>());
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert_eq!(relay.metric("edge_relay_upstream_dropped_total", &[]).await, 0.0);
    assert!(relay.metric("edge_relay_upstream_unread_seconds_total", &[("reason", "rate")]).await > 1.0);
    relay.logged(&["WARN", "upstream.name=feed", "publications-per-second"]).await;
}

#[tokio::test]
async fn an_upstream_without_a_filter_may_drop_what_is_over_the_rate_as_one_gap() {
    let (relay, got, _) = over_the_rate("drop", Duration::from_secs(2)).await;
    assert_eq!(got, (0..100).collect::<Vec<_>>());
    assert_eq!(relay.metric("edge_relay_upstream_dropped_total", &[("reason", "rate")]).await, 200.0);
    assert_eq!(relay.metric("edge_relay_epochs_total", &[("tenant", "t")]).await, 1.0);
    relay.logged(&["WARN", "messages of the upstream are dropped", "publications-per-second"]).await;
}

#[tokio::test]
async fn lines_about_upstreams_count_in_the_tenants_lines() {
    let partner = Partner::start().await;
    let url = partner.url();
    drop(partner);
    let listed: String = (0..30).map(|nth| format!("[[upstream]]\nname = \"f{nth}\"\nurl = \"{url}\"\n")).collect();
    let folder = Folder::new("");
    let limits = "[limits]\nlog-lines-per-second = 3\n";
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{listed}{limits}"));
    let relay = Relay::serve(folder).await;
    let began = Instant::now();
    relay.upstream_failed("refused", 90.0).await;
    let lines = relay.log().lines().filter(|line| line.contains("WARN") && line.contains("upstream.name=")).count();
    let most = 3 * (began.elapsed().as_secs() as usize + 3);
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}");
    let limit = [("tenant", "t"), ("limit", "log-lines-per-second")];
    relay.metric_reaches("edge_relay_limit_refusals_total", &limit, 60.0).await;
}
