//! Clients that do not read: what becomes of them, and that no other client waits for them.

use support::{
    partner::Partner,
    raw::{BINARY, FIN, PING, PONG, Raw, TEXT, frame},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

const LAGGED: [(&str, &str); 2] = [("tenant", "t"), ("reason", "lagged")];
/// Half of the log, so that a client that is two messages behind has fallen off.
const PAYLOAD: usize = 32 << 10;
/// Twice what any kernel keeps for a socket that does not read.
const MOST_MESSAGES: u32 = 2_000;

/// The nth message: its number, then bytes derived from it.
fn payload(nth: u32) -> Vec<u8> {
    let mut payload = nth.to_be_bytes().to_vec();
    payload.resize(PAYLOAD, nth as u8);
    payload
}

#[tokio::test]
async fn a_client_that_falls_off_the_log_is_closed_and_another_misses_nothing() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64KiB\"");
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let mut stalled = Raw::connect(relay.clients, "/t").await;
    let mut reads = relay.client("/t").await;
    let mut sent = 0;
    while relay.metric("edge_relay_clients_closed_total", &LAGGED).await == 0.0 {
        assert!(sent < MOST_MESSAGES, "{sent} messages of {PAYLOAD} bytes, and the stalled client is still kept");
        for _ in 0..8 {
            peer.send(Message::binary(payload(sent))).await;
            assert!(reads.message().await == Message::binary(payload(sent)), "message {sent}");
            sent += 1;
        }
    }
    reads.has_no_more().await;

    // The stalled client finds whole messages without a gap, and then the reason why there are no more.
    let mut found = 0;
    let last = loop {
        let frame = stalled.frame_but_pings().await.expect("a close frame before the end");
        if frame.first != FIN | BINARY {
            break frame;
        }
        assert!(frame.payload == payload(found), "message {found}");
        found += 1;
    };
    assert_eq!(last.close_code(), 1013);
    assert!((1..sent).contains(&found), "{found} of {sent}");
    stalled.ended().await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
    // Each message that arrived whole counts as one delivery for each client.
    assert_eq!(relay.metric("edge_relay_deliveries_total", &[("tenant", "t")]).await, f64::from(sent + found));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped_in_time() {
    let mut partner = Partner::start().await;
    let limits = "stall-timeout = \"1s\"\nping-interval = \"1h\"";
    let relay =
        Relay::serve(Folder::new(limits).tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64MiB\"")).await;
    let mut peer = partner.accept().await;
    let mut stalled = Raw::connect(relay.clients, "/t").await;
    let mut reads = relay.client("/t").await;
    for nth in 0..32 {
        peer.send(Message::binary(vec![nth; 1 << 20])).await;
        assert!(reads.message().await == Message::binary(vec![nth; 1 << 20]), "message {nth}");
    }
    relay.clients_closed("stalled", 1.0).await;
    stalled.ended().await;
    reads.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn a_client_that_pauses_catches_up_on_all_it_missed() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64MiB\"")).await;
    let mut peer = partner.accept().await;
    let mut pauses = relay.client("/t").await;
    let mut reads = relay.client("/t").await;
    // More than the sockets' buffers hold, and less than the log holds.
    for nth in 0..700 {
        peer.send(Message::binary(payload(nth))).await;
        assert!(reads.message().await == Message::binary(payload(nth)), "message {nth}");
    }
    for nth in 0..700 {
        assert!(pauses.message().await == Message::binary(payload(nth)), "message {nth}, late");
    }
    pauses.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_burst_larger_than_the_log_reaches_a_client_that_reads() {
    const MESSAGES: u32 = 200;
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64KiB\"")).await;
    let mut peer = partner.accept().await;
    let mut client = relay.client("/t").await;
    let message = |nth: u32| Message::binary(payload(nth)[..3_000].to_vec());
    // Several bursts, since the outcome depends on which side is faster.
    for burst in 0..10 {
        peer.burst((0..MESSAGES).map(message)).await;
        for nth in 0..MESSAGES {
            assert!(client.message().await == message(nth), "message {nth} of burst {burst}");
        }
    }
    client.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_large_frame_half_sent_is_not_copied_for_each_client_that_asks_meanwhile() {
    const CLIENTS: usize = 40;
    const LARGE: usize = 8 << 20;
    /// A few times the size of the message. A copy of the unsent part for each client would take far more.
    const MOST_MEMORY: usize = 150 << 20;
    let mut partner = Partner::start().await;
    // Longer than the test, so that no client is closed for its silence.
    let limits = "stall-timeout = \"10m\"\nping-interval = \"1h\"";
    let relay =
        Relay::serve(Folder::new(limits).tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64MiB\"")).await;
    let mut peer = partner.accept().await;
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        let mut client = Raw::narrow(relay.clients, "/t").await;
        // The answer comes only when the client is subscribed.
        client.send(&frame(FIN | PING, &[nth as u8])).await;
        assert_eq!(client.frame().await.unwrap().payload, [nth as u8]);
        clients.push(client);
    }
    let large: Vec<u8> = (0..LARGE / 4).flat_map(|word| (word as u32).to_be_bytes()).collect();
    peer.send(Message::binary(large.clone())).await;
    for client in &mut clients {
        assert_eq!(client.begun().await, LARGE);
    }
    assert_eq!(relay.metric("edge_relay_deliveries_total", &[]).await, 0.0, "a socket holds all of the frame");
    for client in &mut clients {
        client.send(&[frame(FIN | PING, b"still here"), frame(FIN | TEXT, b"dropped")].concat()).await;
    }
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &[], CLIENTS as f64).await;
    for client in &mut clients {
        assert!(client.payload(LARGE).await == large, "the frame is cut");
        let pong = client.frame().await.unwrap();
        assert_eq!((pong.first, pong.payload.as_slice()), (FIN | PONG, &b"still here"[..]));
    }
    let memory = relay.peak_memory();
    assert!(memory < MOST_MEMORY, "{memory} bytes for {CLIENTS} clients");
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}
