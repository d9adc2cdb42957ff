//! Clients that send as fast as they are read: messages over their limits, and frames that bring nobody anything.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use support::{
    guests,
    http::chunk,
    raw::{BINARY, CONTINUATION, FIN, PING, PONG, TEXT, frame, request},
};

use crate::{
    scene::{Scene, WITHOUT_RATES, is_full},
    senders::{Repeated, Senders, check_beside, many},
};

/// How many clients the hostile tenant has.
const CLIENTS: [usize; 3] = [1, 3, 30];
/// How long a client waits to be closed.
const PATIENCE: Duration = Duration::from_millis(300);
/// The bit of a compressed message, RFC 7692 section 7.2.1.
const COMPRESSED: u8 = 0x40;
/// Bytes that a bomb inflates to: little less than a client's message may have.
const INFLATED: usize = 1 + 254 * 258;

/// Connects a WebSocket client with one more header.
fn connect(clients: SocketAddr, path: &str, header: &str) -> TcpStream {
    let mut socket = BufReader::new(TcpStream::connect(clients).unwrap());
    let asked = request(clients, path);
    socket.get_mut().write_all(format!("{}{header}\r\n", asked.strip_suffix("\r\n").unwrap()).as_bytes()).unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(socket.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 ") && header.is_empty() != head.contains("permessage-deflate"), "{head}");
    socket.into_inner()
}

/// Checks that the neighbour is undisturbed while all clients of the hostile tenant, with a handler or without, send
/// this.
async fn check(header: &str, first: &[u8], flood: &[u8], has_handler: bool) {
    let sizes = if is_full() { &CLIENTS[..] } else { &CLIENTS[2..] };
    for clients in sizes {
        let more = "[components]\nclient = \"client.wasm\"\n";
        let more = format!("[compression]\nabove = 0\n{}{WITHOUT_RATES}", if has_handler { more } else { "" });
        let mut scene =
            Scene::with(&more, |folder| folder.copy(guests::handler(), "tenants/hostile/client.wasm")).await;
        let sockets: Vec<_> =
            (0..*clients).map(|_| connect(scene.relay.clients, "/hostile?channel=main", header)).collect();
        sockets.iter().for_each(|mut socket| socket.write_all(first).unwrap());
        eprint!("{clients} clients: ");
        Senders::start(sockets, flood).check(&mut scene).await;
        assert_eq!(scene.relay.metric("edge_relay_clients_closed_total", &[("tenant", "hostile")]).await, 0.0);
    }
}

#[tokio::test]
async fn messages_of_a_byte() {
    check("", b"", &many(&frame(FIN | TEXT, b"x")), true).await;
}

#[tokio::test]
async fn messages_that_nobody_handles() {
    check("", b"", &many(&frame(FIN | TEXT, b"")), false).await;
}

#[tokio::test]
async fn pings() {
    check("", b"", &many(&frame(FIN | PING, b"")), false).await;
}

#[tokio::test]
async fn pongs_with_payloads() {
    check("", b"", &many(&frame(FIN | PONG, &[b'x'; 125])), false).await;
}

/// Commands as fast as they are read, by clients that come again and again.
#[tokio::test]
async fn commands_of_the_centrifuge_protocol() {
    let sizes = if is_full() { &CLIENTS[..] } else { &CLIENTS[2..] };
    for clients in sizes {
        let mut scene = Scene::with(WITHOUT_RATES, |_| {}).await;
        let address = scene.relay.clients;
        let connected = frame(FIN | TEXT, br#"{"id":1,"connect":{}}"#);
        let command = frame(FIN | TEXT, br#"{"id":2,"publish":{"channel":"main","data":1}}"#);
        let flood = [connected, many(&command)].concat();
        eprint!("{clients} clients: ");
        let flooding = (0..*clients).map(|_| {
            let flood = flood.clone();
            Repeated::start(move || {
                let mut socket = connect(address, "/hostile/connection/websocket", "");
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                // It may be closed by now.
                let _ = socket.write_all(&flood);
                while socket.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
            })
        });
        check_beside(&mut scene, flooding.collect()).await;
        // Each asks the tenant's code, which has none.
        let labels = [("tenant", "hostile"), ("reason", "no_handler")];
        assert!(scene.relay.metric("edge_relay_client_messages_dropped_total", &labels).await > 0.0);
    }
}

#[tokio::test]
async fn empty_fragments() {
    check("", &frame(TEXT, b""), &many(&frame(CONTINUATION, b"")), false).await;
}

#[tokio::test]
async fn messages_that_inflate() {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    check(offer, b"", &many(&frame(FIN | COMPRESSED | BINARY, &bomb())), true).await;
}

/// Requests to the API that reach nobody, as fast as they are read.
#[tokio::test]
async fn requests_to_the_api() {
    let sizes = if is_full() { &CLIENTS[..] } else { &CLIENTS[2..] };
    for clients in sizes {
        let mut scene = Scene::with("", |_| {}).await;
        let api = scene.relay.api();
        let sockets = (0..*clients).map(|_| TcpStream::connect(api).unwrap()).collect();
        eprint!("{clients} connections: ");
        // Not too short, so that what lies in the sockets at the end is answered soon.
        let more = "x".repeat(4 << 10);
        let request = format!("GET /hostile/none HTTP/1.1\r\nHost: a\r\nMore: {more}\r\n\r\n");
        Senders::start(sockets, &many(request.as_bytes())).check(&mut scene).await;
        assert!(scene.relay.metric("edge_relay_api_refused_total", &[("reason", "not_found")]).await > 0.0);
    }
}

/// Bodies for an API that counts their bytes, in chunks of one byte, as fast as they are read.
#[tokio::test]
async fn bodies_in_chunks_of_a_byte() {
    let sizes = if is_full() { &CLIENTS[..2] } else { &CLIENTS[1..2] };
    for clients in sizes {
        let more = "[components]\napi = \"api.wasm\"\n[limits]\napi-call = \"60s\"\napi-body = \"256MiB\"\n";
        let mut scene = Scene::with(more, |folder| folder.copy(guests::api(), "tenants/hostile/api.wasm")).await;
        let api = scene.relay.api();
        let sockets: Vec<_> = (0..*clients).map(|_| TcpStream::connect(api).unwrap()).collect();
        let request = "POST /hostile/length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        sockets.iter().for_each(|mut socket| socket.write_all(request.as_bytes()).unwrap());
        eprint!("{clients} bodies: ");
        Senders::start(sockets, &many(&chunk(b"x"))).check(&mut scene).await;
    }
}

/// As many equal bytes as one short compressed message can bring (RFC 1951 section 3.2.6).
fn bomb() -> Vec<u8> {
    let mut bits = vec![0, 1, 0];
    // Codes are written from their highest bit on.
    let mut code = |value: u32, length: u32| bits.extend((0..length).rev().map(|bit| value >> bit & 1));
    code(0x91, 8);
    for _ in 0..(INFLATED - 1) / 258 {
        // 258 bytes like the one before.
        code(0xC5, 8);
        code(0, 5);
    }
    // The block's end, and the beginning of an empty one.
    code(0, 7);
    code(0, 3);
    bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |byte, (at, bit)| byte | (*bit as u8) << at)).collect()
}
