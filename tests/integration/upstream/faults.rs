//! Every way to lose a partner, or not to reach one: the relay says why, connects again, and its clients stay.

use serde_json::json;
use support::{
    partner::{Arrival, Partner, Peer},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::Data};

/// Lets the first connections fail, then checks that the next one serves the client that was connected all the time.
///
/// `reason` is the metric's label. It is empty if any reason may be given.
async fn recovers(reason: &str, times: usize, mut fault: impl AsyncFnMut(Arrival)) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "idle-timeout = \"1s\"")).await;
    let mut client = relay.client("/t").await;
    for _ in 0..times {
        fault(partner.arrival().await).await;
    }
    let labels = [("tenant", "t"), ("upstream", "feed"), ("reason", reason)];
    let labels = if reason.is_empty() { &labels[..2] } else { &labels };
    relay.metric_reaches("edge_relay_upstream_failures_total", labels, times as f64).await;

    let mut peer = partner.accept().await;
    peer.text("back").await;
    assert_eq!(client.text().await, "back");
    assert_eq!(partner.connections(), times + 1);
    assert_eq!(
        relay.metric("edge_relay_upstream_state", &[("tenant", "t"), ("upstream", "feed"), ("state", "live")]).await,
        1.0
    );
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, times as f64);
    relay.logged(&["WARN", "tenant.name=t", "upstream.name=feed"]).await;
}

async fn upgraded(arrival: Arrival) -> Peer {
    arrival.upgrade(None).await
}

#[tokio::test]
async fn closed_at_once_again_and_again() {
    recovers("", 3, async |arrival| drop(arrival)).await;
}

#[tokio::test]
async fn reset_before_the_handshake() {
    recovers("reset", 1, async |arrival| arrival.reset()).await;
}

#[tokio::test]
async fn reset_after_the_handshake() {
    recovers("reset", 2, async |arrival| upgraded(arrival).await.reset()).await;
}

#[tokio::test]
async fn ended_without_a_close_frame() {
    recovers("reset", 1, async |arrival| drop(upgraded(arrival).await)).await;
}

#[tokio::test]
async fn closed_with_a_close_frame() {
    recovers("closed", 1, async |arrival| {
        let mut peer = upgraded(arrival).await;
        peer.send(Message::Close(None)).await;
        peer.ended().await;
    })
    .await;
}

#[tokio::test]
async fn an_http_error_status() {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    recovers("http_status", 2, async |arrival| arrival.answer(answer).await).await;
}

#[tokio::test]
async fn an_answer_that_is_no_websocket_handshake() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: bm90IHRoZSBhbnN3ZXI=\r\n\r\n";
    recovers("protocol", 1, async |arrival| arrival.answer(answer).await).await;
    recovers("protocol", 1, async |arrival| arrival.answer(b"220 mail.example.com ESMTP\r\n").await).await;
}

#[tokio::test]
async fn a_breach_of_the_protocol() {
    recovers("protocol", 1, async |arrival| {
        let mut peer = upgraded(arrival).await;
        peer.fragment(Data::Continue, b"of nothing", true).await;
        assert_eq!(peer.ended().await, Some(1002));
    })
    .await;
}

#[tokio::test]
async fn half_open() {
    let mut silent = Vec::new();
    recovers("idle", 1, async |arrival| {
        // The connection is neither read nor closed, so only the kernel still answers.
        silent.push(upgraded(arrival).await);
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there_at_the_start() {
    let mut partner = Partner::start().await;
    partner.stop().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut client = relay.client("/t").await;
    relay.upstream_failed("refused", 2.0).await;
    // The relay is not at fault: it is ready, and names the upstream that is down.
    assert_eq!(relay.states().await["t"]["upstreams"]["feed"], json!("connecting"));
    assert_eq!(relay.get("/healthz").await.0, 200);
    assert_eq!(relay.metric("edge_relay_upstream_state", &[("upstream", "feed"), ("state", "live")]).await, 0.0);
    partner.resume().await;
    let mut peer = partner.accept().await;
    peer.text("at last").await;
    assert_eq!(client.text().await, "at last");
    until("the upstream shown as live", async || match relay.states().await["t"]["upstreams"]["feed"].clone() {
        state if state == "live" => Ok(()),
        state => Err(state.to_string()),
    })
    .await;
}
