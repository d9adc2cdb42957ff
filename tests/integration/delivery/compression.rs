//! permessage-deflate, RFC 7692, on sockets: what is agreed on, what is compressed, what is refused.

use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};
use serde_json::json;
use support::{
    client::Client,
    guests,
    partner::Partner,
    raw::{self, BINARY, FIN, Frame, Raw, TEXT},
    relay::Relay,
    script::Script,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

use crate::docs::readme;

/// RSV1: the message is compressed.
const COMPRESSED: u8 = 0x40;
const COMPRESSION: &str = "[compression]\nabove = 100\n";

/// Returns the text of a message that a relay has compressed.
fn inflated(frame: &Frame) -> String {
    assert_eq!(frame.first, FIN | COMPRESSED | TEXT, "{frame:?}");
    // Adds the tail of section 7.2.2 and an empty last block.
    let stream = [&frame.payload[..], &[0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF]].concat();
    String::from_utf8(decompress_to_vec_with_limit(&stream, 1 << 20).unwrap()).unwrap()
}

/// Compresses a message as a client does. The stream has a last block, so it has no tail to leave out (section
/// 7.2.3.4).
fn deflated(payload: &[u8]) -> Vec<u8> {
    compress_to_vec(payload, 9)
}

/// Offers an extension. Returns the extension in the answer.
async fn offering(relay: &Relay, path: &str, extensions: &str) -> (Raw, Option<String>) {
    let mut socket = Raw::tcp(relay.clients).await;
    let request = raw::request(relay.clients, path);
    let request = request.replacen("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {extensions}\r\n\r\n"), 1);
    socket.send(request.as_bytes()).await;
    let head = socket.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let extension =
        |line: &str| line.to_ascii_lowercase().strip_prefix("sec-websocket-extensions: ").map(str::to_owned);
    let agreed = head.lines().find_map(extension);
    (socket, agreed)
}

/// A text with a number that compresses well.
fn long(number: usize) -> String {
    json!({ "number": number, "text": "over and ".repeat(40) }).to_string()
}

#[tokio::test]
async fn publications_are_compressed_for_clients_that_agree() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), COMPRESSION);
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let (mut agrees, agreed) = offering(&relay, "/t", "permessage-deflate; client_max_window_bits").await;
    let contextless = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(agreed.as_deref(), Some(contextless));
    let (mut python, agreed) = offering(&relay, "/t", "permessage-deflate; server_max_window_bits=12").await;
    assert_eq!(agreed, Some(format!("{contextless}; server_max_window_bits=12")));
    let (mut narrow, agreed) = offering(&relay, "/t", "permessage-deflate; server_max_window_bits=9").await;
    assert_eq!(agreed, Some(format!("{contextless}; server_max_window_bits=9")));
    let (mut plain, agreed) = offering(&relay, "/t", "x-webkit-deflate-frame").await;
    assert_eq!(agreed, None);

    for number in 0..10 {
        peer.text(long(number)).await;
        for socket in [&mut agrees, &mut python] {
            let frame = socket.frame_but_pings().await.unwrap();
            assert_eq!(inflated(&frame), long(number));
            assert!(frame.payload.len() < long(number).len() / 3, "{}", frame.payload.len());
        }
        for socket in [&mut narrow, &mut plain] {
            let whole = Frame { first: FIN | TEXT, payload: long(number).into_bytes() };
            assert_eq!(socket.frame_but_pings().await, Some(whole));
        }
    }
    // Messages are not compressed if they are short, or if compression would not make them shorter.
    peer.text("short").await;
    let noise: Vec<u8> = (0..1000).map(|_| rand::random()).collect();
    peer.send(Message::binary(noise.clone())).await;
    for socket in [&mut agrees, &mut plain] {
        let short = Frame { first: FIN | TEXT, payload: b"short".to_vec() };
        assert_eq!(socket.frame_but_pings().await, Some(short));
        let incompressible = Frame { first: FIN | BINARY, payload: noise.clone() };
        assert_eq!(socket.frame_but_pings().await, Some(incompressible));
    }
}

#[tokio::test]
async fn nothing_is_agreed_on_unless_the_tenant_says_so() {
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), "")).await;
    for path in ["/t", "/t/connection/websocket"] {
        let (mut socket, agreed) = offering(&relay, path, "permessage-deflate").await;
        assert_eq!(agreed, None, "{path}");
        socket.send(&raw::frame(FIN | COMPRESSED | TEXT, &deflated(b"{}"))).await;
        assert_eq!(socket.closed().await, 1002, "{path}");
    }
}

#[tokio::test]
async fn what_clients_compress_is_read_and_answered_so() {
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), COMPRESSION)).await;
    let (mut socket, _) = offering(&relay, "/t", "permessage-deflate; server_max_window_bits=9").await;
    let said = "x".repeat(2000);
    socket.send(&raw::frame(FIN | COMPRESSED | TEXT, &deflated(format!("reply {said}").as_bytes()))).await;
    assert_eq!(inflated(&socket.frame_but_pings().await.unwrap()), said);
    // In a message of fragments, only the first frame says that it is compressed.
    let whole = deflated(b"reply fragments");
    let (first, rest) = whole.split_at(4);
    socket.send(&[raw::frame(COMPRESSED | TEXT, first), raw::frame(FIN, rest)].concat()).await;
    let reply = Frame { first: FIN | TEXT, payload: b"fragments".to_vec() };
    assert_eq!(socket.frame_but_pings().await, Some(reply));
}

#[tokio::test]
async fn bombs_and_rubbish_end_the_connection() {
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), COMPRESSION)).await;
    let mut other = relay.client("/t").await;
    // The bomb has less than 64 KiB, which is an accepted size, and inflates to 64 MiB.
    let bomb = deflated(&vec![0; 64 << 20]);
    assert!(bomb.len() <= 64 << 10, "{}", bomb.len());
    for (payload, code) in [(&bomb[..], 1009), (b"\xFF\xFF rubbish", 1007), (&deflated(b"\xFF not text"), 1007)] {
        let (mut socket, _) = offering(&relay, "/t", "permessage-deflate").await;
        socket.send(&raw::frame(FIN | COMPRESSED | TEXT, payload)).await;
        assert_eq!(socket.closed().await, code);
    }
    let (mut socket, _) = offering(&relay, "/t", "permessage-deflate").await;
    socket.send(&[raw::frame(TEXT, b"reply "), raw::frame(FIN | COMPRESSED, b"x")].concat()).await;
    assert_eq!(socket.closed().await, 1002);
    other.send(Message::text("reply still here")).await;
    assert_eq!(other.text().await, "still");
}

#[tokio::test]
async fn real_clients_agree_and_read_what_is_compressed() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("market", &partner.url(), COMPRESSION)).await;
    let mut peer = partner.accept().await;
    let at = |text: &str| text.replace("HOST:8080", &relay.clients.to_string()).replace("=prices", "=main");
    let node = Script::node(&at(readme::block("js", "from \"ws\"")), &[]);
    let python = Script::python(&at(readme::block("python", "websockets")), &[]);
    let (Some(mut node), Some(mut python)) = (node, python) else { return };
    let sdk = at(readme::block("js", "Centrifuge"))
        .replace("\"prices\"", "\"main\"")
        .replace("console.log(publication.offset, publication.data)", "console.log(JSON.stringify(publication.data))");
    let mut sdk = Script::node(&sdk, &[]).unwrap();
    relay.metric_is("edge_relay_clients", &[], 3.0).await;
    let mut witness = Client::connect(&relay.url("/market?channel=main")).await;
    // It is not known when the SDK's subscription begins, so messages are sent until it has.
    let mut number = 0;
    loop {
        peer.text(long(number)).await;
        assert_eq!(witness.text().await, long(number));
        for script in [&mut node, &mut python] {
            let said = script.said().await;
            assert_eq!(said, long(number));
        }
        number += 1;
        let subscribers = 4.0;
        if relay.metric("edge_relay_deliveries_total", &[]).await >= subscribers * 3.0 && number >= 5 {
            break;
        }
    }
    let first: serde_json::Value = sdk.said_json().await;
    assert!(first["text"].as_str().unwrap().starts_with("over and"), "{first}");
}
