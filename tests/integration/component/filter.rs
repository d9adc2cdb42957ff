//! A filter at work: which calls it gets, in which order, and what becomes of its publications.

use support::{guests, partner::Partner, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

const SUBSCRIBE: &str = r#"{"type":"subscribe","channels":["ticker"]}"#;

#[tokio::test]
async fn market_subscribes_first_and_publishes_what_changes() {
    let mut partner = Partner::start().await;
    let settings = format!("[settings]\nsubscribe = '{SUBSCRIBE}'");
    let folder = Folder::new("").filtered("t", &partner.url(), guests::market("filter"), &settings);
    let relay = Relay::serve(folder).await;
    let mut prices = relay.client("/t?channel=prices").await;
    let mut main = relay.client("/t").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, SUBSCRIBE);

    let ticker = |product, price| format!(r#"{{"type":"ticker","product_id":"{product}","price":"{price}","x":[1]}}"#);
    peer.burst([
        Message::text(ticker("A-B", "1.20")),
        Message::text(ticker("A-B", "1.20")),
        Message::text("not JSON"),
        Message::binary(ticker("A-B", "9")),
        Message::text(r#"{"type":"match","product_id":"A-B","price":"8"}"#),
        Message::text(ticker("C-D", "1.20")),
        Message::text(ticker("A-B", "1.2")),
    ])
    .await;
    for (product, price) in [("A-B", "1.20"), ("C-D", "1.20"), ("A-B", "1.2")] {
        assert_eq!(prices.text().await, format!(r#"{{"product":"{product}","price":"{price}"}}"#));
    }
    prices.has_no_more().await;
    main.has_no_more().await;

    // The filter does so again on each new connection.
    drop(peer);
    assert_eq!(partner.accept().await.next_text().await, SUBSCRIBE);
}

/// A relay whose tenant `t` has the hostile filter with these settings.
async fn hostile(partner: &Partner, settings: &str) -> Relay {
    let settings = format!("[settings]\n{settings}");
    Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::hostile(), &settings)).await
}

#[tokio::test]
async fn frames_that_queue_go_in_as_batches_and_come_out_in_order() {
    const FRAMES: usize = 1_000;
    const SINGLY: usize = 100;
    let mut partner = Partner::start().await;
    let relay = hostile(&partner, "mode = \"slow\"\nbusy-ms = \"200\"").await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    let frame = |nth: usize| {
        if nth.is_multiple_of(3) { Message::binary(nth.to_string()) } else { Message::text(nth.to_string()) }
    };
    peer.send(frame(0)).await;
    peer.burst((1..FRAMES - SINGLY).map(frame)).await;
    // These arrive one by one, while the filter is busy.
    for nth in FRAMES - SINGLY..FRAMES {
        relay.metric_reaches("edge_relay_upstream_messages_total", &[], nth as f64).await;
        peer.send(frame(nth)).await;
    }
    for nth in 0..FRAMES {
        assert_eq!(client.message().await, frame(nth));
    }
    client.has_no_more().await;
    // Without batches this would take minutes.
    let labels = [("tenant", "t"), ("name", "feed")];
    let calls = relay.metric("edge_relay_guest_calls_total", &labels).await;
    assert!((3.0..50.0).contains(&calls), "{calls} calls for {FRAMES} frames");
    assert_eq!(relay.metric("edge_relay_guest_call_seconds_count", &labels).await, calls);
    let seconds = relay.metric("edge_relay_guest_call_seconds_sum", &labels).await;
    assert!(seconds >= 0.2 * (calls - 1.0), "{seconds} s in {calls} calls that take 0.2 s, but for on-open");
    // Publications are counted after clients have got them.
    let publications = relay.metric_reaches("edge_relay_publications_total", &[("tenant", "t")], FRAMES as f64).await;
    assert_eq!(publications, FRAMES as f64);
}

#[tokio::test]
async fn it_hears_of_the_connections_end_after_every_message() {
    let mut partner = Partner::start().await;
    let relay = hostile(&partner, "mode = \"slow\"\nbusy-ms = \"50\"").await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    peer.burst((0..100).map(|nth| Message::text(nth.to_string()))).await;
    peer.send(Message::Close(None)).await;
    for nth in 0..100 {
        assert_eq!(client.text().await, nth.to_string());
    }
    let last = client.text().await;
    assert!(last.starts_with("closed: "), "{last}");
    peer.ended().await;
    partner.accept().await.text("next").await;
    assert_eq!(client.text().await, "next");
}

#[tokio::test]
async fn what_it_logs_and_writes_to_stderr_is_in_the_log_with_its_tenant() {
    let mut partner = Partner::start().await;
    let relay = hostile(&partner, "mode = \"stderr\"").await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    peer.text("a line of mine").await;
    relay.logged(&["tenant.name=t", "stderr", "a line of mine"]).await;
    // The same line through wasi:logging, with its context.
    relay.logged(&["tenant.name=t", "hostile", "a line of mine"]).await;
    assert_eq!(client.text().await, "a line of mine");

    // A guest can neither forge a line nor flood the log.
    let shout = format!("first\n2021-01-01T00:00:00Z ERROR forged\n\x1b[31m{}", "x".repeat(1 << 20));
    peer.text(shout.as_str()).await;
    assert!(client.text().await == shout);
    let line = relay.logged(&["tenant.name=t", "stderr", "forged"]).await;
    // What the host says of it stands before what it says itself, which it cannot close.
    assert!(line.find("guest.stream=stderr").unwrap() < line.find("forged").unwrap(), "{line}");
    let hidden = "cut\u{2028}2021 \u{202e}backwards";
    peer.text(hidden).await;
    assert_eq!(client.text().await, hidden);
    relay.logged(&["tenant.name=t", "stderr", "cut\\u{2028}2021 \\u{202e}backwards"]).await;
    relay
        .logged(&["tenant.name=t", "guest.stream=logging guest.context=hostile}: cut\\u{2028}2021 \\u{202e}backwards"])
        .await;
    for line in relay.log().lines() {
        assert!(line.starts_with("20") && !line.starts_with("2021-"), "a line that the guest has forged: {line:.200}");
        assert!(!line.contains('\x1b'), "{line:.200}");
    }
}

#[tokio::test]
async fn each_upstream_has_an_instance_of_its_own() {
    let (mut one, mut two) = (Partner::start().await, Partner::start().await);
    let more = format!(
        "[[upstream]]\nname = \"second\"\nurl = \"{}\"\n[settings]\nmode = \"loop-on\"\nmatch = \"stop\"\n\
         [limits]\nfilter-call = \"2s\"",
        two.url()
    );
    let folder = Folder::new("").tenant("t", &one.url(), &more);
    folder.copy(guests::hostile(), "tenants/t/filter.wasm");
    let manifest = std::fs::read_to_string(folder.path("tenants/t/tenant.toml")).unwrap();
    folder.write("tenants/t/tenant.toml", format!("{manifest}\n[components]\nfilter = \"filter.wasm\"\n"));
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t?channel=out").await;
    let (mut first, mut second) = (one.accept().await, two.accept().await);
    first.text("stop").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[("upstream", "feed")], 1.0).await;
    second.text("from the second").await;
    assert_eq!(client.text().await, "from the second");
    let failures = [("name", "feed"), ("reason", "deadline")];
    assert_eq!(
        relay.metric("edge_relay_guest_failures_total", &failures).await,
        0.0,
        "the second filter waited for the first"
    );
    relay.metric_reaches("edge_relay_guest_failures_total", &failures, 1.0).await;
    first.text("from the first").await;
    assert_eq!(client.text().await, "from the first");
}
