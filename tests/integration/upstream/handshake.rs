//! Answers to the WebSocket handshake that RFC 6455 allows, and those that it does not allow.

use std::time::Duration;

use support::{
    client::Client,
    partner::{HANDSHAKE, Partner, RawPeer},
    relay::Relay,
    tenant::Folder,
};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

/// A relay with a client, and its partner.
struct Scene {
    partner: Partner,
    relay: Relay,
    client: Client,
}

impl Scene {
    /// `upstream`: more keys of the upstream.
    async fn new(upstream: &str) -> Self {
        let partner = Partner::start().await;
        let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), upstream)).await;
        let client = relay.client("/t").await;
        Self { partner, relay, client }
    }

    async fn request(&mut self) -> RawPeer {
        self.partner.arrival().await.request().await
    }

    /// Checks that a connection is open: what the partner sends reaches the client.
    async fn is_open(&mut self, mut peer: RawPeer, case: &str) {
        peer.frame(0x81, case.as_bytes()).await;
        assert_eq!(self.client.text().await, case);
    }

    /// Checks that the relay has given up, and said why.
    async fn is_refused(&self, reason: &str, words: &[&str]) {
        self.relay.upstream_failed(reason, 1.0).await;
        self.relay.logged(&[&["WARN", "upstream"], words].concat()).await;
    }
}

#[tokio::test]
async fn connection_is_a_list_of_tokens() {
    let mut scene = Scene::new("").await;
    for lines in [
        &["Connection: Upgrade, Keep-Alive"][..],
        &["Connection: keep-alive, upgrade"],
        &["Connection: keep-alive", "connection: UPGRADE"],
        &["CONNECTION: ,, Upgrade ,"],
    ] {
        let mut peer = scene.request().await;
        peer.switch(&[&["UPGRADE: WebSocket", "sec-websocket-accept: ACCEPT"], lines].concat(), b"").await;
        scene.is_open(peer, &lines.join("; ")).await;
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let mut scene = Scene::new("").await;
    let mut peer = scene.request().await;
    peer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n").await;
    peer.agree(&[]).await;
    scene.is_open(peer, "after 100 and 103").await;
}

#[tokio::test]
async fn an_answer_may_come_a_byte_at_a_time() {
    let mut scene = Scene::new("").await;
    let mut peer = scene.request().await;
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
    for byte in answer.replace("ACCEPT", &peer.accept_key()).into_bytes() {
        peer.write(&[byte]).await;
        sleep(Duration::from_millis(1)).await;
    }
    scene.is_open(peer, "byte by byte").await;
}

#[tokio::test]
async fn an_answer_may_have_many_fields_but_not_without_end() {
    let mut scene = Scene::new("").await;
    let many: Vec<_> = (0..130).map(|nth| format!("X-Field-{nth}: {nth}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut peer = scene.request().await;
    peer.agree(&many).await;
    scene.is_open(peer, "130 fields").await;

    // Each interim answer is small, and there is no end of them.
    let mut peer = scene.request().await;
    peer.write(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(4000)).await;
    scene.is_refused("protocol", &["within 65536 bytes"]).await;
}

#[tokio::test]
async fn what_comes_behind_the_answer_is_kept() {
    let mut scene = Scene::new("").await;
    let mut peer = scene.request().await;
    peer.switch(&HANDSHAKE, b"\x81\x05first\x81\x06sec").await;
    assert_eq!(scene.client.text().await, "first");
    peer.write(b"ond").await;
    assert_eq!(scene.client.text().await, "second");
}

#[tokio::test]
async fn a_subprotocol_that_is_offered_need_not_be_chosen() {
    let mut scene = Scene::new("subprotocols = [\"v1\", \"v2\"]").await;
    let mut peer = scene.request().await;
    assert_eq!(peer.header("sec-websocket-protocol"), Some("v1, v2"));
    peer.agree(&[]).await;
    scene.is_open(peer, "none chosen").await;
}

#[tokio::test]
async fn what_was_not_offered_cannot_be_chosen() {
    for (line, words) in [
        ("Sec-WebSocket-Protocol: v3", "the subprotocol \"v3\", which was not offered"),
        ("Sec-WebSocket-Extensions: permessage-deflate", "the extension \"permessage-deflate\", which was not offered"),
        ("Sec-WebSocket-Extensions: x-webkit-deflate-frame", "which was not offered"),
    ] {
        let mut scene = Scene::new("subprotocols = [\"v1\"]").await;
        let mut peer = scene.request().await;
        peer.agree(&[line]).await;
        scene.is_refused("protocol", &[words]).await;
        peer.rest().await;
    }
}

#[tokio::test]
async fn a_query_without_a_path_asks_for_the_root() {
    let mut partner = Partner::start().await;
    let url = format!("ws://{}?a=b \u{e9}", partner.address);
    let _relay = Relay::serve(Folder::new("").tenant("t", &url, "")).await;
    assert_eq!(partner.arrival().await.request().await.target(), "/?a=b%20%C3%A9");
}

#[tokio::test]
async fn pass_asks_in_the_same_way() {
    let mut partner = Partner::start().await;
    let _relay = Relay::pass(&format!("ws://{}?a=b", partner.address), &[]).await;
    let peer = partner.arrival().await.request().await;
    assert_eq!(peer.target(), "/?a=b");
    assert_eq!(peer.header("host"), Some(partner.address.to_string().as_str()));
}

#[tokio::test]
async fn a_dot_may_end_a_hosts_name() {
    let mut partner = Partner::local().await;
    let url = partner.named_url().replace("localhost", "localhost.");
    let _relay = Relay::serve(Folder::new("").tenant("t", &url, "")).await;
    partner.accept().await;
}

#[tokio::test]
async fn a_partners_close_frame_is_answered() {
    let mut scene = Scene::new("").await;
    let mut peer = scene.request().await;
    peer.agree(&[]).await;
    peer.frame(0x88, b"\x0F\xA0bye").await;
    scene.is_refused("closed", &["with code 4000", "bye"]).await;
    let answer = peer.rest().await;
    // Masked, with the partner's own code.
    assert_eq!((answer[0], answer[1]), (0x88, 0x82), "{answer:?}");
    assert_eq!([answer[6] ^ answer[2], answer[7] ^ answer[3]], [0x0F, 0xA0]);
}

/// RFC 7692 section 7.2.3: "Hello" as one block, and again with the window of the message before.
const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
const HELLO_AGAIN: &[u8] = &[0xf2, 0x00, 0x11, 0x00, 0x00];

#[tokio::test]
async fn compressed_messages_are_read_with_and_without_context() {
    let mut scene = Scene::new("compression = true").await;
    for (answer, second) in [
        ("permessage-deflate; server_no_context_takeover", HELLO),
        ("permessage-deflate; client_no_context_takeover; server_max_window_bits=12", HELLO_AGAIN),
        ("permessage-deflate; client_max_window_bits=9", HELLO_AGAIN),
    ] {
        let mut peer = scene.request().await;
        let offer = "permessage-deflate; client_no_context_takeover; client_max_window_bits";
        assert_eq!(peer.header("sec-websocket-extensions"), Some(offer));
        peer.agree(&[&format!("Sec-WebSocket-Extensions: {answer}")]).await;
        peer.frame(0xC1, HELLO).await;
        peer.frame(0x81, b"plain").await;
        // In fragments, with a ping between them.
        peer.frame(0x42, &second[..2]).await;
        peer.frame(0x89, b"").await;
        peer.frame(0x80, &second[2..]).await;
        assert_eq!(scene.client.text().await, "Hello");
        assert_eq!(scene.client.text().await, "plain");
        assert_eq!(scene.client.message().await, Message::binary(b"Hello".to_vec()), "{answer}");
    }
}

#[tokio::test]
async fn a_message_that_inflates_over_the_limit_ends_the_connection() {
    let mut scene = Scene::new("compression = true\nmax-message = \"1KiB\"").await;
    let mut peer = scene.request().await;
    peer.agree(&["Sec-WebSocket-Extensions: permessage-deflate"]).await;
    // 1,024 zeros, then one more by a message that refers to them.
    let zeros = |count: usize| {
        let mut stored = vec![0x00, (count & 0xFF) as u8, (count >> 8) as u8];
        stored.extend_from_slice(&[!stored[1], !stored[2]]);
        stored.resize(stored.len() + count, 0);
        stored.push(0x00);
        stored
    };
    let send = |first: u8, payload: Vec<u8>| {
        let mut frame = vec![first, 126, (payload.len() >> 8) as u8, payload.len() as u8];
        frame.extend_from_slice(&payload);
        frame
    };
    peer.write(&send(0xC2, zeros(1024))).await;
    assert_eq!(scene.client.message().await.len(), 1024);
    peer.write(&send(0xC2, zeros(1025))).await;
    scene.is_refused("too_large", &[]).await;
}

#[tokio::test]
async fn without_the_setting_compression_is_not_offered() {
    let mut scene = Scene::new("").await;
    let mut peer = scene.request().await;
    assert_eq!(peer.header("sec-websocket-extensions"), None);
    peer.agree(&[]).await;
    peer.frame(0xC1, HELLO).await;
    scene.is_refused("protocol", &["a reserved bit is set"]).await;
}
