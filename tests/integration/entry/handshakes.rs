//! From a TCP connection to a client: refusals, deadlines, and crowds that never finish.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use support::{
    client::Client,
    partner::Partner,
    raw::{FIN, PING, PONG, Raw, frame, request},
    relay::{Relay, http, status},
    tenant::Folder,
    within,
};
use tokio::{net::TcpSocket, net::TcpStream, task::JoinSet, time::Instant};

async fn relay(limits: &str) -> (Partner, Relay) {
    let partner = Partner::start().await;
    let relay = Relay::serve(Folder::new(limits).tenant("t", &partner.url(), "")).await;
    (partner, relay)
}

/// Sends a request that must be refused. Returns the answer's status, its head, and the code and the message of its
/// error.
pub async fn refusal(relay: &Relay, request: &str) -> (u16, String, String, String) {
    let (head, body) = within("an answer", http(relay.clients, request)).await;
    let json: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {head}\n\n{body}"));
    let text = |key: &str| json["error"][key].as_str().unwrap_or_else(|| panic!("{json}")).to_owned();
    (status(&head), head, text("code"), text("message"))
}

#[tokio::test]
async fn refusals_say_why() {
    let (_partner, relay) = relay("").await;
    let good = request(relay.clients, "/t");
    let bare = |line: &str| format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let cases = [
        ("unknown tenant", request(relay.clients, "/unknown"), 404),
        ("no path", request(relay.clients, "/"), 404),
        ("a path below a tenant's", request(relay.clients, "/t/more"), 404),
        ("not a WebSocket", bare("GET /t"), 426),
        ("not a WebSocket at no tenant's path", bare("GET /unknown"), 404),
        ("another version", good.replace("Version: 13", "Version: 8"), 426),
        ("no version", good.replace("Sec-WebSocket-Version: 13\r\n", ""), 426),
        ("no key", good.replace("Sec-WebSocket-Key", "X-Key"), 400),
        ("a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        ("not an upgrade", good.replace("Connection: Upgrade", "Connection: close"), 400),
        ("a channel without a name", request(relay.clients, "/t?channel="), 400),
        ("a channel's name too long", request(relay.clients, &format!("/t?channel={}", "x".repeat(256))), 400),
        ("a control character", request(relay.clients, "/t?channel=a%00"), 400),
        ("two hosts", good.replace("Host:", "Host: b\r\nHost:"), 400),
        ("a host with a user", good.replace("Host: ", "Host: x@"), 400),
        ("a host with a port that is none", good.replace("Host: ", "Host: host:x"), 400),
        ("no host", good.replace("Host:", "X-Host:"), 400),
    ];
    for (what, request, expected) in &cases {
        let (status, head, code, message) = refusal(&relay, request).await;
        assert_eq!(status, *expected, "{what}: {head}");
        assert!(!code.is_empty() && !message.is_empty(), "{what}: {code:?}, {message:?}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{what}: {head}");
    }
    let head = refusal(&relay, &bare("GET /t")).await.1.to_ascii_lowercase();
    assert!(head.contains("upgrade: websocket"), "{head}");
    let refused = relay.metric("edge_relay_handshakes_refused_total", &[]).await;
    assert_eq!(refused, cases.len() as f64 + 1.0);
    assert_eq!(relay.metric("edge_relay_clients_accepted_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_tenant_that_lists_its_channels_has_no_others() {
    let partner = Partner::start().await;
    let listed = "[channels.\"prices\"]\n[channels.\"news-*\"]";
    let folder = Folder::new("").tenant("t", &partner.url(), listed).tenant("any", &partner.url(), "");
    let relay = Relay::serve(folder).await;
    for query in ["?channel=main", "?channel=prices", "?channel=news-", "?channel=news-a&channel=prices"] {
        relay.client(&format!("/t{query}")).await;
    }
    let others = ["other", "news", "prices-", "prices&channel=other"];
    for other in others {
        let (status, head, code, message) =
            refusal(&relay, &request(relay.clients, &format!("/t?channel={other}"))).await;
        assert_eq!((status, code.as_str()), (403, "channel"), "{other}: {head}");
        assert!(message.contains("no such channel"), "{other}: {message}");
        relay.client(&format!("/any?channel={other}")).await;
    }
    let refused = relay.metric("edge_relay_handshakes_refused_total", &[("reason", "channel")]).await;
    assert_eq!(refused, others.len() as f64);
}

#[tokio::test]
async fn where_few_files_may_be_open_clients_have_a_share() {
    const FILES: u32 = 512;
    const CLIENTS: usize = 50;
    let partner = Partner::start().await;
    let relay = Relay::serve_with_files(Folder::new("").tenant("t", &partner.url(), ""), FILES).await;
    relay.logged(&["WARN", "limits lowered", &format!("files={FILES}")]).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(relay.client("/t").await);
    }
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, CLIENTS as f64);
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let (_partner, relay) = relay("").await;
    let endless = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let headers = format!("GET /t HTTP/1.1\r\n{}\r\n", "X-More: x\r\n".repeat(10_000));
    for garbage in ["\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", "HELO example.com\r\n\r\n", &endless, &headers] {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.try_send(garbage.as_bytes()).await;
        raw.ended().await;
    }
    relay.metric_reaches("edge_relay_handshakes_refused_total", &[], 4.0).await;
    relay.client("/t").await;
}

#[tokio::test]
async fn a_slash_at_the_end_and_frames_right_behind_the_request_are_fine() {
    let (_partner, relay) = relay("").await;
    relay.client("/t/").await;
    let mut raw = Raw::tcp(relay.clients).await;
    raw.send(&[request(relay.clients, "/t").as_bytes(), &frame(FIN | PING, b"early")].concat()).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    let pong = raw.frame().await.unwrap();
    assert_eq!((pong.first, pong.payload.as_slice()), (FIN | PONG, &b"early"[..]));
}

#[tokio::test]
async fn half_a_handshake_is_cut_at_the_deadline() {
    let (_partner, relay) = relay("handshake-timeout = \"500ms\"\nping-interval = \"500ms\"").await;
    let mut nothing = Raw::tcp(relay.clients).await;
    let mut half = Raw::tcp(relay.clients).await;
    half.send(b"GET /t HTTP/1.1\r\nHost:").await;
    nothing.ended().await;
    half.ended().await;
    // A client that sends headers for ever, one at a time.
    let mut drips = Raw::tcp(relay.clients).await;
    drips.send(b"GET /t HTTP/1.1\r\n").await;
    within("an end to the dripping", async {
        while drips.try_send(b"X-More: x\r\n").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    relay.metric_reaches("edge_relay_handshakes_refused_total", &[("reason", "timeout")], 3.0).await;
    // A connected client has no such deadline. This takes longer than the deadline.
    let mut client = relay.client("/t").await;
    client.pinged(3).await;
    client.has_no_more().await;
}

#[tokio::test]
async fn the_client_over_the_limit_is_refused() {
    let (_partner, relay) = relay("clients = 2").await;
    let first = relay.client("/t").await;
    let _second = relay.client("/t").await;
    let (status, head, ..) = refusal(&relay, &request(relay.clients, "/t")).await;
    assert_eq!(status, 503, "{head}");
    drop(first);
    support::until("room for another", async || {
        Client::try_connect(&relay.url("/t")).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn five_thousand_connections_that_never_finish_keep_nobody_out() {
    const CROWD: u16 = 5_000;
    raise_file_limit(u64::from(CROWD) + 1_000);
    // Longer than the test, so that no connection of the crowd ends by itself.
    let (mut partner, relay) = relay("handshake-timeout = \"5m\"").await;
    let mut peer = partner.accept().await;
    let mut before = relay.client("/t").await;
    let crowd = within("a crowd", crowd(relay.clients, CROWD)).await;
    assert_eq!(crowd.len(), usize::from(CROWD));

    let began = Instant::now();
    // The client may be told once to come again, while the crowd is new.
    let mut after = loop {
        match Client::try_connect(&relay.url("/t")).await {
            Ok(client) => break client,
            Err(error) => assert!(error.to_string().contains("503"), "{error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    after.settle().await;
    assert!(began.elapsed() < Duration::from_secs(5), "an ordinary client got in after {:?}", began.elapsed());
    peer.text("for both").await;
    assert_eq!(before.text().await, "for both");
    assert_eq!(after.text().await, "for both");
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, 2.0);
    drop(crowd);
}

/// Opens connections from several loopback addresses. Half of them send half a request.
async fn crowd(relay: SocketAddr, size: u16) -> Vec<TcpStream> {
    /// Connections that are opened at the same time: fewer than a listener's backlog.
    const AT_ONCE: usize = 200;
    let mut crowd = Vec::new();
    let mut connecting = JoinSet::new();
    for nth in 0..size {
        if connecting.len() == AT_ONCE {
            crowd.push(connecting.join_next().await.unwrap().unwrap());
        }
        connecting.spawn(async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((Ipv4Addr::new(127, 3, 0, (nth % 8) as u8 + 1), 0))).unwrap();
            let socket = socket.connect(relay).await.unwrap();
            if nth % 2 == 0 {
                // The relay may have cut the connection by now.
                let _ = socket.try_write(b"GET /t HTTP/1.1\r\nHost: ");
            }
            socket
        });
    }
    crowd.extend(connecting.join_all().await);
    crowd
}

pub fn raise_file_limit(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|most| most >= wanted), "the limit of open files must allow {wanted}: {limit:?}");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum.or(Some(20_000)), ..limit }).unwrap();
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client() {
    let partner = Partner::start().await;
    for (trusted, logged) in [("[\"127.0.0.0/8\"]", "203.0.113.7"), ("[\"10.0.0.0/8\"]", "127.0.0.1")] {
        let folder = Folder::new("").tenant("t", &partner.url(), "");
        let config = std::fs::read_to_string(folder.config()).unwrap();
        folder.write("relay.toml", format!("trusted-proxies = {trusted}\n{config}"));
        let relay = Relay::serve_with(folder, &[("EDGE_RELAY_LOG", "debug")]).await;
        let mut raw = Raw::tcp(relay.clients).await;
        let forwarded = "\r\nX-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n\r\n";
        raw.send(request(relay.clients, "/t").replace("\r\n\r\n", forwarded).as_bytes()).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
        relay.logged(&["client comes", &format!("client.address={logged}")]).await;
    }
}
