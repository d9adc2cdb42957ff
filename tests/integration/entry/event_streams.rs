//! The transport for `EventSource`, seen as HTTP: headers, which pages may listen, keep-alives, and streams that end.

use serde_json::json;
use support::{
    guests,
    http::{Head, Http},
    partner::Partner,
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

/// Asks for a stream. Returns the connection, read up to the end of the answer's head.
async fn listen(relay: &Relay, path: &str, headers: &str) -> (Http, Head) {
    let mut http = Http::connect(relay.clients).await;
    http.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", relay.clients)).await;
    let head = http.head().await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    (http, head)
}

/// Serves a tenant without code and upstream, with more keys in its manifest.
async fn tenant(limits: &str, more: &str) -> Relay {
    let folder = Folder::new(limits);
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{more}"));
    Relay::serve(folder).await
}

#[tokio::test]
async fn proxies_are_told_to_pass_it_on() {
    let relay = tenant("", "").await;
    let (mut stream, head) = listen(&relay, "/t/sse", "").await;
    assert_eq!(head.header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    assert_eq!(head.header("connection"), Some("close"));
    assert!(head.header("date").is_some_and(|date| date.ends_with("GMT")));
    assert_eq!((head.header("transfer-encoding"), head.header("content-length")), (None, None));
    assert_eq!(head.header("access-control-allow-origin"), None);
    assert_eq!(stream.line().await, "retry: 2000");
}

#[tokio::test]
async fn pages_of_listed_origins_may_listen() {
    let relay = tenant("", "origins = [\"https://app.example.com\"]").await;
    let (_stream, head) = listen(&relay, "/t/sse", "Origin: https://app.example.com\r\n").await;
    assert_eq!(head.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(head.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(head.header("vary"), Some("Origin"));

    let anybody = tenant("", "origins = [\"*\"]").await;
    let (_stream, head) = listen(&anybody, "/t/sse", "Origin: https://other.example.com\r\n").await;
    assert_eq!(head.header("access-control-allow-origin"), Some("https://other.example.com"));
    // A page may not read with its user's cookies.
    assert_eq!(head.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn comments_keep_a_silent_stream_alive() {
    let relay = tenant("ping-interval = \"1s\"", "").await;
    let (mut stream, _) = listen(&relay, "/t/sse", "").await;
    let mut comments = 0;
    while comments < 3 {
        comments += usize::from(stream.line().await == ":");
    }
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, 1.0);
    drop(stream);
    relay.metric_is("edge_relay_clients", &[], 0.0).await;
}

#[tokio::test]
async fn an_event_source_comes_again_where_the_fault_is_not_its_own() {
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), "")).await;
    let (mut stream, _) = listen(&relay, "/t/sse?trap", "Accept: text/event-stream\r\n").await;
    assert_eq!(stream.line().await, "retry: 2000");
    assert_eq!(stream.line().await, ": the tenant's code broke");
    let mut http = Http::connect(relay.clients).await;
    http.send(format!(
        "GET /t/sse?reject=403 HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n",
        relay.clients
    ))
    .await;
    assert_eq!(http.head().await.status, 403);
}

#[tokio::test]
async fn a_slow_stream_is_told_of_its_gap_and_ends() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[channels.\"main\"]\nlog = \"64KiB\"");
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let (mut stream, _) = listen(&relay, "/t/sse", "").await;
    let mut reads = relay.client("/t").await;
    let mut sent = 0;
    while relay.metric("edge_relay_clients_closed_total", &[("reason", "lagged")]).await == 0.0 {
        sent += 1;
        let message = json!({ "number": sent, "padding": "x".repeat(32 << 10) }).to_string();
        peer.text(message.clone()).await;
        assert_eq!(reads.message().await, Message::text(message));
        assert!(sent < 10_000, "the client is never closed as too slow");
    }
    let rest = stream.rest().await;
    let (events, end) = rest.rsplit_once("event: gap\n").unwrap();
    assert_eq!(end.lines().next(), Some(r#"data: {"channel":"main"}"#));
    assert!(end.contains(": closed, 1013"), "{end}");
    let numbers = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()["number"].as_u64().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    assert!(!numbers.is_empty() && (1..).zip(&numbers).all(|(wanted, got)| wanted == *got));
}

/// Some clients cannot send `Last-Event-ID`, and repeat the URL that they came with first.
#[tokio::test]
async fn a_client_goes_on_at_the_newest_of_the_positions_that_it_names() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    for text in ["1", "2", "3", "4", "5"] {
        assert_eq!(relay.api_get(&format!("/t/publish?channel=main&text={text}")).await.0, 200);
    }
    let page = Http::connect(relay.clients).await.get("/t/channels/main").await.json();
    let at =
        |offset: u64| format!("{}:{}", page["epoch"].as_str().unwrap(), page["offset"].as_u64().unwrap() - 5 + offset);
    let other = "99999999:7";
    // The query, the header, whether there is a gap, and the first message.
    for (query, header, gap, first) in [
        (format!("since={}&lastEventId={}", at(1), at(3)), String::new(), false, "4"),
        (format!("since={}", at(1)), at(4), false, "5"),
        (format!("since={}&lastEventId={}", at(3), at(1)), String::new(), false, "4"),
        (format!("lastEventId={}", at(2)), at(1), false, "3"),
        (format!("since={other}&lastEventId={}", at(3)), String::new(), false, "4"),
        (format!("since={other}"), at(3), false, "4"),
        (format!("since={}&lastEventId=", at(2)), String::new(), false, "3"),
        (String::new(), " ".into(), false, "new"),
        ("lastEventId=".into(), String::new(), false, "new"),
        ("lastEventId=nonsense".into(), String::new(), true, "new"),
        (format!("lastEventId={other}"), String::new(), true, "new"),
    ] {
        let header = if header.is_empty() { header } else { format!("Last-Event-ID: {}\r\n", header.trim()) };
        let (mut stream, _) = listen(&relay, &format!("/t/sse?{query}"), &header).await;
        let mut lines = vec![stream.line().await];
        if first == "new" {
            relay.metric_is("edge_relay_clients", &[], 1.0).await;
            assert_eq!(relay.api_get("/t/publish?channel=main&text=new").await.0, 200);
        }
        while !lines.last().unwrap().starts_with("data: ") || lines.last().unwrap().contains("channel") {
            lines.push(stream.line().await);
        }
        assert_eq!(lines.last().unwrap(), &format!("data: {first}"), "{query} {header}: {lines:?}");
        assert_eq!(lines.contains(&"event: gap".to_owned()), gap, "{query} {header}: {lines:?}");
        drop(stream);
        relay.metric_is("edge_relay_clients", &[], 0.0).await;
    }
}
