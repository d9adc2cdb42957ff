//! What components send on a connection, and how they ask for another.

use std::time::Duration;

use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};

async fn scene(settings: &str) -> (Partner, Relay, Probe) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), settings)).await;
    let probe = Probe::new(&relay, &mut partner, "t").await;
    (partner, relay, probe)
}

#[tokio::test]
async fn frames_go_out_in_order_behind_those_that_are_to_be_first() {
    let (_partner, _relay, mut probe) = scene("").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    assert_eq!(probe.ask("send-thrice one two first").await, "ok ok ok");
    // The connection may have taken some before the last was sent.
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(probe.peer.next_text().await);
    }
    sent.retain(|text| text != "first");
    assert_eq!(sent, ["one", "two"]);
}

#[tokio::test]
async fn frames_for_a_connection_that_is_gone_are_refused() {
    let (mut partner, _relay, mut probe) = scene("").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    assert_eq!(probe.ask("send-on 1 here").await, "ok");
    assert_eq!(probe.peer.next_text().await, "here");
    probe.peer = {
        drop(probe.peer);
        partner.accept().await
    };
    assert_eq!(probe.peer.next_text().await, "open 2 ConnectionReason::New");
    assert_eq!(probe.ask("send-on 1 there").await, "disconnected");
    assert_eq!(probe.ask("send-on 2 here").await, "ok");
    assert_eq!(probe.peer.next_text().await, "here");
}

#[tokio::test]
async fn what_is_sent_during_on_open_comes_behind_what_it_returns() {
    let (_partner, _relay, mut probe) = scene("[settings]\nsend-in-open = 1\n").await;
    for text in ["open 1 ConnectionReason::New", "ok", "from elsewhere"] {
        assert_eq!(probe.peer.next_text().await, text);
    }
}

#[tokio::test]
async fn nothing_is_taken_for_a_connection_that_is_not_open_yet() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered(
        "t",
        &partner.url(),
        guests::told(),
        "[limits]\nfilter-call = \"30s\"\n[settings]\nslow-open = 3000\n",
    );
    folder.append("tenants/t/tenant.toml", "");
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let shown = support::until("an upstream that waits", async || {
        let shown = crate::upstream::states::shown(&relay).await;
        if shown["reason"].is_string() { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(shown["state"], "connecting");
    assert!(shown["reason"].as_str().unwrap().contains("on-open"), "{shown}");
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    crate::upstream::states::is(&relay, "live").await;
}

#[tokio::test]
async fn a_component_asks_for_another_connection() {
    let (mut partner, relay, mut probe) = scene("").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    assert_eq!(probe.ask("overlap maintenance").await, "unsupported");
    assert_eq!(probe.ask("reconnect maintenance").await, "ok");
    assert_eq!(probe.peer.ended().await, Some(1000));
    relay.upstream_failed("asked", 1.0).await;
    probe.peer = partner.accept().await;
    assert_eq!(probe.peer.next_text().await, "open 2 ConnectionReason::New");
    relay.logged(&["a component asks for another connection", "maintenance"]).await;
    // Each time after a pause: the partner counts connections, too.
    for number in 3..6 {
        assert_eq!(probe.ask("reconnect again").await, "ok");
        probe.peer = partner.accept().await;
        assert_eq!(probe.peer.next_text().await, format!("open {number} ConnectionReason::New"));
    }
    relay.logged(&["retry_ms"]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(partner.connections(), 5);
}
