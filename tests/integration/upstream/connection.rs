//! The connection to a partner in normal operation, and its limits.

use std::{ops::RangeInclusive, time::Duration};

use support::{client::Client, partner::Partner, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::Data};

const MIB: usize = 1 << 20;

/// A relay of one tenant `t` without a filter, with these keys in its `[[upstream]]`.
async fn relay(partner: &Partner, upstream: &str) -> Relay {
    Relay::serve(Folder::new("").tenant("t", &partner.url(), upstream)).await
}

#[tokio::test]
async fn messages_pass_as_they_came_without_a_filter() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    let messages = [
        Message::text("{\"a\": 1 }\n"),
        Message::binary(vec![0, 0x80, 0xFF]),
        Message::text(""),
        Message::binary(vec![]),
        Message::text("ü".repeat(40_000)),
        Message::binary(vec![7; 2 * MIB]),
    ];
    peer.burst(messages.clone()).await;
    for message in messages {
        assert!(client.message().await == message, "{:.80}", message);
    }
    client.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_upstream_messages_total", &[("tenant", "t"), ("upstream", "feed")]).await, 6.0);
    assert_eq!(relay.metric("edge_relay_upstream_bytes_total", &[]).await, (11 + 3 + 80_000 + 2 * MIB - 1) as f64);
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[]).await, 0.0);
}

#[tokio::test]
async fn fragments_are_joined() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    // The first cut is inside a character, and a ping comes between two fragments.
    peer.fragment(Data::Text, b"Z\xC3", false).await;
    peer.fragment(Data::Continue, b"\xBCri", false).await;
    peer.send(Message::Ping("between".into())).await;
    peer.fragment(Data::Continue, b"ch", true).await;
    peer.fragment(Data::Binary, b"", false).await;
    peer.fragment(Data::Continue, b"\xC3", true).await;
    assert_eq!(client.message().await, Message::text("Zürich"));
    assert_eq!(client.message().await, Message::binary(b"\xC3".to_vec()));
    let mut next = peer.next().await;
    while next == Some(Message::Ping("".into())) {
        next = peer.next().await;
    }
    assert_eq!(next, Some(Message::Pong("between".into())));
}

#[tokio::test]
async fn pass_sends_headers_and_subprotocols_and_nothing_more() {
    let mut partner = Partner::start().await;
    let more = ["--header", "X-One: 1", "--header", "X-Two:a:b", "--subprotocol", "v2.feed", "--subprotocol", "v1"];
    let relay = Relay::pass(&partner.url(), &more).await;
    let mut peer = partner.arrival().await.upgrade(Some("v1")).await;
    assert_eq!(peer.path, "/feed?key=1");
    assert_eq!((&peer.headers["x-one"], &peer.headers["x-two"]), (&"1".parse().unwrap(), &"a:b".parse().unwrap()));
    assert_eq!(peer.headers["sec-websocket-protocol"], "v2.feed, v1");
    let mut client = relay.client("/").await;
    peer.text("hello").await;
    assert_eq!(client.text().await, "hello");
    client.send(Message::text("from a client")).await;
    client.settle().await;
    peer.was_sent_nothing().await;
}

#[tokio::test]
async fn serve_sends_a_tenants_headers_with_secrets_from_the_environment() {
    let mut partner = Partner::start().await;
    let upstream = "headers = { x-plain = \"p\", authorization = { env = \"T__TOKEN\" } }\nsubprotocols = [\"v1\"]";
    let folder = Folder::new("").tenant("t", &partner.url(), upstream);
    let relay = Relay::serve_with(folder, &[("T__TOKEN", "Bearer s3cret")]).await;
    let peer = partner.arrival().await.upgrade(Some("v1")).await;
    assert_eq!(peer.headers["x-plain"], "p");
    assert_eq!(peer.headers["authorization"], "Bearer s3cret");
    assert_eq!(peer.headers["sec-websocket-protocol"], "v1");
    relay.logged(&["upstream connected"]).await;
    assert!(!relay.log().contains("s3cret"));
}

#[tokio::test]
async fn a_silent_partner_that_answers_pings_is_kept() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "idle-timeout = \"600ms\"").await;
    let mut peer = partner.accept().await;
    let began = tokio::time::Instant::now();
    // Waits for several idle limits. The library under `next` answers the pings.
    while began.elapsed() < Duration::from_secs(3) {
        assert!(matches!(peer.next().await, Some(Message::Ping(_))));
    }
    assert_eq!(partner.connections(), 1);
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
    assert_eq!(relay.metric("edge_relay_upstream_state", &[("state", "live")]).await, 1.0);
}

#[tokio::test]
async fn pings_are_answered_and_of_many_at_once_the_last() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    relay.client("/t").await;
    let mut peer = partner.arrival().await.request().await;
    peer.agree(&[]).await;
    let pings = |numbers: RangeInclusive<u8>| -> Vec<u8> { numbers.flat_map(|nth| [0x89, 1, nth]).collect() };
    peer.write(&pings(1..=10)).await;
    for nth in 1..=10 {
        assert_eq!(peer.next_frame().await, Some((0x8A, vec![nth])));
    }
    // As one write they are read at once, or nearly.
    peer.write(&pings(11..=250)).await;
    let mut pongs = Vec::new();
    while pongs.last() != Some(&250) {
        let Some((0x8A, payload)) = peer.next_frame().await else { panic!("after {pongs:?}") };
        pongs.extend(payload);
    }
    assert!(pongs.is_sorted() && (16..100).contains(&pongs.len()), "{pongs:?}");
}

#[tokio::test]
async fn one_connection_whatever_the_number_of_clients() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let mut peer = partner.accept().await;
    for round in 0..5 {
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(relay.client("/t").await);
        }
        peer.text(round.to_string()).await;
        for client in &mut clients {
            assert_eq!(client.text().await, round.to_string());
        }
    }
    assert_eq!(partner.connections(), 1);
    assert_eq!(relay.metric("edge_relay_upstream_connections_total", &[]).await, 1.0);
}

/// Checks that the relay connects again after a refusal, and that its client goes on.
async fn goes_on(partner: &mut Partner, client: &mut Client) {
    let mut peer = partner.accept().await;
    peer.text("and on").await;
    assert_eq!(client.text().await, "and on");
    client.has_no_more().await;
    assert_eq!(partner.connections(), 2);
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_connection() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "max-message = \"64KiB\"").await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.send(Message::binary(vec![1; 64 << 10])).await;
    assert_eq!(client.message().await.len(), 64 << 10);
    peer.send(Message::binary(vec![1; (64 << 10) + 1])).await;
    assert_eq!(peer.ended().await, Some(1009));
    relay.upstream_failed("too_large", 1.0).await;
    goes_on(&mut partner, &mut client).await;
}

#[tokio::test]
async fn a_message_over_the_limit_in_many_fragments_ends_the_connection() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "max-message = \"64KiB\"").await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    let mut kind = Data::Binary;
    // No fragment is the last one. A relay that waited for the last one would collect for ever.
    for _ in 0..1_000 {
        if !peer.fragment(kind, vec![1; 32 << 10], false).await {
            break;
        }
        kind = Data::Continue;
    }
    relay.upstream_failed("too_large", 1.0).await;
    goes_on(&mut partner, &mut client).await;
}

#[tokio::test]
async fn sixty_four_mebibytes_in_one_message_are_refused_unread() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    assert!(!peer.try_send(Message::binary(vec![0; 64 * MIB])).await, "the relay has read it all");
    relay.upstream_failed("too_large", 1.0).await;
    goes_on(&mut partner, &mut client).await;
    assert!(relay.peak_memory() < 64 * MIB, "{} bytes resident", relay.peak_memory());
}

#[tokio::test]
async fn a_message_that_comes_slowly_is_a_sign_of_life() {
    let mut partner = Partner::start().await;
    let manifest =
        format!("name = \"t\"\n[[upstream]]\nname = \"feed\"\nurl = \"{}\"\nidle-timeout = \"1s\"", partner.url());
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", manifest);
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    // Lasts three times the idle limit, without a whole message and without an answer to a ping.
    peer.fragment(Data::Text, b"0", false).await;
    for nth in 1..=15 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(peer.fragment(Data::Continue, b"0", nth == 15).await);
    }
    assert_eq!(client.text().await, "0".repeat(16));
    assert_eq!(relay.metric("edge_relay_upstream_connections_total", &[]).await, 1.0);
}
