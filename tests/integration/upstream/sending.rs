//! What components send on a connection, and how they ask for another.

use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder, until};

use crate::upstream::states::{is, shown};

async fn scene(settings: &str) -> (Partner, Relay, Probe) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), settings)).await;
    let probe = Probe::new(&relay, &mut partner, "t").await;
    (partner, relay, probe)
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
async fn what_is_sent_during_on_open_comes_behind_what_it_returns_and_what_is_to_be_first_before_the_rest() {
    let (_partner, _relay, mut probe) = scene("[settings]\nsend-in-open = 1\n").await;
    for text in ["open 1 ConnectionReason::New", "ok ok ok, 3 wait", "first", "one", "two"] {
        assert_eq!(probe.peer.next_text().await, text);
    }
}

#[tokio::test]
async fn nothing_is_taken_for_a_connection_that_is_not_open_yet() {
    let (mut partner, mut others) = (Partner::start().await, Partner::start().await);
    let more = format!("[[upstream]]\nname = \"other\"\nurl = \"{}\"\n[limits]\nfilter-call = \"30s\"", others.url());
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), &more)).await;
    let mut probe = Probe::new(&relay, &mut others, "t").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    assert_eq!(probe.ask("send-to feed hello").await, "ok");
    assert_eq!(peer.next_text().await, "hello");
    // The filter is busy while the connection is lost, and another one opened.
    peer.text("slow 3000").await;
    drop(peer);
    let mut peer = partner.accept().await;
    let shown = until("an upstream that waits", async || match shown(&relay).await {
        shown if shown["reason"].as_str().is_some_and(|why| why.contains("on-open")) => Ok(shown),
        shown => Err(shown.to_string()),
    })
    .await;
    assert_eq!(shown["state"], "connecting");
    assert_eq!(probe.ask("send-to feed hello").await, "disconnected");
    assert_eq!(peer.next_text().await, "open 2 ConnectionReason::New");
    is(&relay, "live").await;
    assert_eq!(probe.ask("send-to feed hello").await, "ok");
    assert_eq!(peer.next_text().await, "hello");
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
    assert_eq!(partner.connections(), 2);
}
