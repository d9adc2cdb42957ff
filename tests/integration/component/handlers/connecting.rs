//! Which clients are let in, and to which channels.

use support::{
    client::Client,
    guests,
    raw::{FIN, Raw, TEXT, frame, request},
    relay::Relay,
    tenant::Folder,
};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::{ERROR_100, RELEASE, ask, failures, keep_busy, queue_is, relay, relay_with, texts};
use crate::entry::handshakes::refusal;

/// Returns the status, the code and the message with which a handshake at this path is refused.
async fn refused(relay: &Relay, path: &str) -> (u16, String, String) {
    let (status, _, code, message) = refusal(relay, &request(relay.clients, path)).await;
    (status, code, message)
}

/// How many handshakes led to no client, for this reason.
async fn counted(relay: &Relay, reason: &str) -> f64 {
    relay.metric("edge_relay_handshakes_refused_total", &[("reason", reason)]).await
}

/// Connects with more headers. Returns what the handler saw of the request, a line for each part.
async fn seen(relay: &Relay, path: &str, headers: &[u8]) -> Vec<String> {
    let mut raw = Raw::tcp(relay.clients).await;
    let plain = request(relay.clients, path);
    let head = plain.strip_suffix("\r\n").unwrap().as_bytes();
    raw.send(&[head, headers, b"\r\n", &frame(FIN | TEXT, b"request")].concat()).await;
    let answer = raw.head().await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let shown = raw.frame().await.unwrap();
    String::from_utf8(shown.payload).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_handler_sees_the_request() {
    let relay = relay("").await;
    let headers = b"X-Mixed-Case: one\r\nx-twice: a\r\nX-Twice: b\r\nx-not-utf-8: \xC3\xA9\xFF\r\n";
    let seen = seen(&relay, "/t?identity=ada&x=%20%FF", headers).await;
    assert_eq!(seen[..4], ["/t", "identity=ada&x=%20%FF", "127.0.0.1", "Transport::Websocket"]);
    assert_eq!(seen[4..7], ["None"; 3], "neither a token nor data nor claims");
    let host = format!("host: {}", relay.clients);
    for header in [&host, "x-mixed-case: one", "x-twice: a", "x-twice: b", "x-not-utf-8: \u{e9}\u{fffd}"] {
        assert!(seen[7..].iter().any(|line| line == header), "{header}: {seen:?}");
    }
}

#[tokio::test]
async fn the_handler_sees_no_header_in_which_a_client_says_that_it_is_another() {
    let relay = relay("").await;
    let headers = b"X-Forwarded-For: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.7\r\nx_forwarded_for: 6.6.6.8\r\n\
        Forwarded: for=6.6.6.9\r\nX-Forwarded-Host: 6.6.6.10\r\nX-Mine: 1\r\n";
    let seen = seen(&relay, "/t", headers).await.join("\n");
    assert!(seen.contains("x-mine: 1") && !seen.contains("6.6.6."), "{seen}");
}

#[tokio::test]
async fn the_handler_sees_the_host_of_a_whole_url() {
    let relay = relay("").await;
    let mut raw = Raw::tcp(relay.clients).await;
    let asked = request(relay.clients, "/t?x").replace("GET /t", "GET http://feed.example:80/t");
    raw.send(&[asked.as_bytes(), &frame(FIN | TEXT, b"request")].concat()).await;
    let answer = raw.head().await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let seen = String::from_utf8(raw.frame().await.unwrap().payload).unwrap();
    assert!(seen.starts_with("/t\nx\n") && seen.contains("\nhost: feed.example:80\n"), "{seen}");
}

#[tokio::test]
async fn a_token_is_the_bearers_or_else_the_querys() {
    let relay = relay("").await;
    let cases = [
        ("/t", "", "None"),
        ("/t?token=from-query", "", "Some(\"from-query\")"),
        ("/t?token=a%20b%2B&token=c", "", "Some(\"a b+\")"),
        ("/t", "Authorization: Bearer from.header\r\n", "Some(\"from.header\")"),
        ("/t?token=from-query", "authorization: bEARER from.header\r\n", "Some(\"from.header\")"),
        ("/t?token=from-query", "Authorization: Basic dTpw\r\n", "Some(\"from-query\")"),
        ("/t", "Authorization: Basic dTpw\r\n", "None"),
        ("/t", "Authorization: Bearer\r\n", "None"),
    ];
    for (path, headers, token) in cases {
        assert_eq!(seen(&relay, path, headers.as_bytes()).await[4], token, "{path} {headers}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_tells_the_handler_the_clients_address() {
    for (trusted, address) in [("[\"127.0.0.0/8\"]", "203.0.113.7"), ("[\"10.0.0.0/8\"]", "127.0.0.1")] {
        let folder = Folder::new("").handled("t", guests::handler(), "");
        let config = std::fs::read_to_string(folder.config()).unwrap();
        folder.write("relay.toml", format!("trusted-proxies = {trusted}\n{config}"));
        let relay = Relay::serve(folder).await;
        let seen = seen(&relay, "/t", b"X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n").await;
        assert_eq!(seen[2], address, "{trusted}");
    }
}

#[tokio::test]
async fn identity_and_channels_are_the_handlers_choice() {
    let relay = relay("").await;
    let mut ada = relay.client("/t?identity=ada&channels=a,b,a&channel=c").await;
    let mut nobody = relay.client("/t?channels=&channel=c").await;
    assert_eq!(ask(&mut ada, "whoami").await, "ada");
    assert_eq!(ask(&mut nobody, "whoami").await, "nobody");
    // The handler has already chosen, and is not asked about channels.
    assert_eq!(ask(&mut ada, "asked").await, "");
    let said = "publish a 1\npublish main 2\npublish c 3\npublish b 4\nreply done";
    assert_eq!(ask(&mut nobody, said).await, "done");
    assert_eq!(texts(&mut ada).await, ["1", "4"]);
    assert_eq!(ask(&mut ada, "subscribers a").await, "1");
    assert_eq!(ask(&mut ada, "subscribers main").await, "0");
    for client in [&mut ada, &mut nobody] {
        client.has_no_more().await;
    }
}

#[tokio::test]
async fn without_a_choice_a_client_gets_what_it_asks_for_each_allowed_or_else_main() {
    let relay = relay("").await;
    let mut both = relay.client("/t?channel=b&channel=a&channel=b").await;
    let mut main = relay.client("/t").await;
    assert_eq!(ask(&mut both, "asked").await, "a b ");
    assert_eq!(ask(&mut main, "asked").await, "main ");
    both.send(Message::text("publish main 1\npublish a 2\npublish b 3")).await;
    assert_eq!(texts(&mut both).await, ["2", "3"]);
    assert_eq!(main.text().await, "1");
    main.has_no_more().await;
    both.has_no_more().await;
}

#[tokio::test]
async fn a_channel_denied_is_the_handshakes_answer_and_the_client_that_was_let_in_has_left() {
    let relay = relay("").await;
    let mut gone = relay.client("/t?channels=gone").await;
    let (status, code, message) = refused(&relay, "/t?channel=a&channel=private-1&channel=z").await;
    assert_eq!((status, code.as_str(), message.as_str()), (451, "rejected", "private-1 is private"));
    let left = gone.text().await;
    assert!(left.ends_with(" handshake"), "{left}");
    assert_eq!(failures(&relay, "guest_said_no", "subscribe").await, 1.0);
    assert_eq!(counted(&relay, "rejected").await, 1.0);
    assert_eq!(relay.metric("edge_relay_clients_accepted_total", &[]).await, 1.0);
    gone.has_no_more().await;
}

#[tokio::test]
async fn a_rejection_has_the_handlers_status_and_reason() {
    let relay = relay("").await;
    let mut gone = relay.client("/t?channels=gone").await;
    let cases = [
        (400, 400),
        (401, 401),
        (418, 418),
        (599, 599),
        // HTTP has no refusals with these codes.
        (0, 403),
        (101, 403),
        (200, 403),
        (399, 403),
        (600, 403),
        (999, 403),
        (1000, 403),
        (65535, 403),
    ];
    for (told, expected) in cases {
        let (status, code, message) = refused(&relay, &format!("/t?reject={told}")).await;
        let wanted = (expected, "rejected".to_owned(), format!("told to say {told}"));
        assert_eq!((status, code, message), wanted);
    }
    relay.logged(&["WARN", "guest.role=client", "field=status status=65535"]).await;
    assert_eq!(failures(&relay, "guest_said_no", "connect").await, cases.len() as f64);
    assert_eq!(counted(&relay, "rejected").await, cases.len() as f64);
    // No client was let in that could leave.
    gone.has_no_more().await;
}

#[tokio::test]
async fn a_client_with_too_many_channels_is_refused_before_the_handler_is_asked() {
    let relay = relay("").await;
    let mut knocks = relay.client("/t?channels=knocks").await;
    let query: Vec<_> = (0..65).map(|nth| format!("channel=c{nth}")).collect();
    let (status, code, _) = refused(&relay, &format!("/t?{}", query.join("&"))).await;
    assert_eq!((status, code.as_str()), (400, "channel"));
    knocks.has_no_more().await;
}

#[tokio::test]
async fn channels_that_cannot_be_are_the_handlers_fault() {
    let folder = Folder::new("").handled("t", guests::handler(), "").handled(
        "listed",
        guests::handler(),
        "[channels.\"news\"]\n[channels.\"gone\"]",
    );
    let relay = Relay::serve(folder).await;
    let mut gone = relay.client("/t?channels=gone").await;
    let long = format!("/t?channels={}", "x".repeat(256));
    for path in ["/t?many=65", long.as_str(), "/listed?channels=news,other"] {
        let (status, code, message) = refused(&relay, path).await;
        assert_eq!((status, code.as_str()), (500, "handler"), "{path}: {message}");
        assert!(message.ends_with("channels that cannot be"), "the channel's name was sent to the client: {message}");
    }
    assert_eq!(counted(&relay, "handler").await, 3.0);
    assert_eq!(failures(&relay, "guest_broke", "channels").await, 2.0);
    for _ in 0..2 {
        let left = gone.text().await;
        assert!(left.ends_with(" handshake"), "{left}");
    }
    gone.has_no_more().await;
    relay.client("/t?many=64").await;
    relay.client("/listed?channels=news").await;
}

#[tokio::test]
async fn messages_right_behind_the_handshake_are_handled() {
    let relay = relay("client-queue = 1000").await;
    for query in ["", "?busy=300"] {
        let mut raw = Raw::tcp(relay.clients).await;
        // More than the relay reads together with the request.
        let command = |nth: usize| format!("reply {nth}-{}", "x".repeat(1000));
        let messages: Vec<u8> = (0..100).flat_map(|nth| frame(FIN | TEXT, command(nth).as_bytes())).collect();
        raw.send(&[request(relay.clients, &format!("/t{query}")).as_bytes(), &messages].concat()).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
        for nth in 0..100 {
            let reply = raw.frame().await.unwrap();
            assert_eq!(reply.first, FIN | TEXT);
            assert!(reply.payload.starts_with(format!("{nth}-").as_bytes()), "{nth}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_is_gone_while_it_is_let_in_has_left() {
    let relay = relay("client-call = \"60s\"").await;
    let mut watches = relay.client("/t?channels=knocks,gone").await;
    let mut raw = Raw::tcp(relay.clients).await;
    raw.send(request(relay.clients, "/t?hold=key").as_bytes()).await;
    let knock = watches.text().await;
    let id = knock.strip_suffix(" hold=key").unwrap_or_else(|| panic!("{knock}"));
    drop(raw);
    relay.metric_reaches("edge_relay_handshakes_refused_total", &[("reason", "http")], 1.0).await;
    watches.has_no_more().await;
    // The answer and the publication take different ways.
    let mut come = [ask(&mut watches, RELEASE).await, watches.text().await];
    come.sort();
    assert_eq!(come, [format!("{id} handshake"), "released".to_owned()]);
    watches.has_no_more().await;
}

#[tokio::test]
async fn clients_that_leave_before_their_turn_cost_no_call() {
    const CROWD: usize = 50;
    let relay = relay("client-instances = 1\nclient-call = \"3s\"").await;
    let mut watches = relay.client("/t?channels=knocks,gone").await;
    keep_busy(&relay, &mut watches, "loop").await;
    for _ in 0..CROWD {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(request(relay.clients, "/t").as_bytes()).await;
    }
    relay.metric_reaches("edge_relay_handshakes_refused_total", &[("reason", "http")], CROWD as f64).await;
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 0.0, "the call ended before they left");
    assert_eq!(watches.text().await, ERROR_100);
    relay.client("/t?last").await;
    let knock = watches.text().await;
    assert!(knock.ends_with(" last"), "{knock}");
}

#[tokio::test]
async fn no_more_clients_get_in_at_once_than_may_be_there() {
    let relay = relay_with("clients = 3", "client-call = \"60s\"").await;
    let mut watches = relay.client("/t?channels=gone,knocks").await;
    let (url, mut connecting) = (relay.url("/t?hold=key"), JoinSet::new());
    for _ in 0..6 {
        let url = url.clone();
        connecting.spawn(async move { Client::try_connect(&url).await });
    }
    // The handler is asked about all of them at the same time.
    for _ in 0..6 {
        let knock = watches.text().await;
        assert!(knock.ends_with(" hold=key"), "{knock}");
    }
    assert_eq!(ask(&mut watches, RELEASE).await, "released");
    let connected = connecting.join_all().await;
    let (clients, others): (Vec<_>, Vec<_>) = connected.into_iter().partition(Result::is_ok);
    assert_eq!(clients.len(), 2);
    for other in others {
        let why = other.err().unwrap().to_string();
        assert!(why.contains("503"), "{why}");
    }
    assert_eq!(counted(&relay, "full").await, 4.0);
    for _ in 0..4 {
        let left = watches.text().await;
        assert!(left.ends_with(" handshake"), "{left}");
    }
    watches.has_no_more().await;
}

#[tokio::test]
async fn a_client_is_told_to_come_later_while_too_many_wait_for_the_handler() {
    let relay = relay_with("handshakes = 3", "client-call = \"60s\"").await;
    let mut watches = relay.client("/t?channels=gone,knocks").await;
    let (url, mut connecting) = (relay.url("/t?hold=key"), JoinSet::new());
    for _ in 0..3 {
        let url = url.clone();
        connecting.spawn(async move { Client::try_connect(&url).await });
        assert!(watches.text().await.ends_with(" hold=key"));
    }
    let (status, head, code, _) = refusal(&relay, &request(relay.clients, "/t")).await;
    assert_eq!((status, code.as_str()), (503, "crowded"), "{head}");
    let later =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after: ")?.parse::<u32>().ok());
    assert!(later.is_some_and(|seconds| (1..=5).contains(&seconds)), "{head}");
    assert_eq!(counted(&relay, "crowded").await, 1.0);
    // Clients that the handler is asked about are not cut to make room.
    assert_eq!(ask(&mut watches, RELEASE).await, "released");
    assert!(connecting.join_all().await.iter().all(Result::is_ok));
    relay.client("/t").await;
}

#[tokio::test]
async fn a_client_waits_for_a_second_while_others_are_being_let_in() {
    let relay = relay_with("handshakes = 8", "handshakes = 1\nclient-call = \"10s\"").await;
    let mut watches = relay.client("/t?channels=knocks").await;
    let url = relay.url("/t?busy=400");
    let slow = tokio::spawn(async move { Client::try_connect(&url).await });
    assert!(watches.text().await.ends_with(" busy=400"));
    relay.client("/t").await;
    assert!(slow.await.unwrap().is_ok());
    assert_eq!(counted(&relay, "crowded").await, 0.0);
}

#[tokio::test]
async fn without_a_handler_what_clients_send_is_dropped() {
    let folder = Folder::new("").handled("t", guests::handler(), "");
    folder.write("tenants/bare/tenant.toml", "name = \"bare\"");
    let relay = Relay::serve(folder).await;
    let mut bare = relay.client("/bare?reject=400").await;
    bare.send(Message::text("reply hello")).await;
    let dropped = [("tenant", "bare"), ("reason", "no_handler")];
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &dropped, 1.0).await;
    bare.has_no_more().await;
    // The neighbour's handler was not called.
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[]).await, 0.0);
    queue_is(&relay, 0).await;
}
