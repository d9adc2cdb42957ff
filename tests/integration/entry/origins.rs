//! Pages as clients: which may come, what they may read, and the preflights before.

use support::{
    http::Http,
    partner::Partner,
    process::{run, shown},
    raw::{Raw, request},
    relay::Relay,
    tenant::Folder,
};

use super::handshakes::refusal;

const LISTED: &str = "https://app.test";
const OTHER: &str = "https://other.test";

/// A tenant with these keys at the beginning of its manifest. There is something on its main channel.
async fn tenant(limits: &str, keys: &str) -> Relay {
    let relay = Relay::serve(Folder::new(limits).api("t", keys)).await;
    assert_eq!(relay.api_get("/t/publish?channel=main&text=news").await.0, 200);
    relay
}

/// A request to each door.
fn asked(relay: &Relay, path: &str, origin: &str) -> String {
    let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
    request(relay.clients, path).replacen("\r\n\r\n", &format!("\r\n{origin}\r\n"), 1)
}

/// How a request is answered: its status, and what a page may read.
async fn answered(relay: &Relay, path: &str, origin: &str) -> (u16, Option<String>) {
    let mut http = Http::connect(relay.clients).await;
    http.send(asked(relay, path, origin)).await;
    let head = http.head().await;
    (head.status, head.header("access-control-allow-origin").map(str::to_owned))
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_at_every_door() {
    let relay = tenant("", &format!("origins = [\"{LISTED}\"]")).await;
    let anybody = tenant("", "origins = [\"*\"]").await;
    let unlisted = tenant("", "").await;
    for (path, good) in [("/t", 101), ("/t/connection/websocket", 101), ("/t/sse", 200), ("/t/channels/main", 200)] {
        for (origin, status) in [(LISTED, good), ("", good), (OTHER, 403), ("null", 403)] {
            assert_eq!(answered(&relay, path, origin).await.0, status, "{path} {origin}");
        }
        for origin in [OTHER, "null", ""] {
            assert_eq!(answered(&anybody, path, origin).await.0, good, "{path} {origin}");
            assert_eq!(answered(&unlisted, path, origin).await, (good, None), "{path} {origin}");
        }
    }
    let (_, head, code, message) = refusal(&relay, &asked(&relay, "/t", OTHER)).await;
    assert_eq!(code, "origin", "{head}");
    assert!(message.contains("origin"), "{message}");
    for path in ["/t/sse", "/t/channels/main"] {
        assert_eq!(answered(&relay, path, LISTED).await.1.as_deref(), Some(LISTED));
        assert_eq!(answered(&anybody, path, OTHER).await.1.as_deref(), Some(OTHER));
    }
}

#[tokio::test]
async fn the_key_of_before_is_told_its_new_name() {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\ncors = [\"*\"]\n");
    let config = folder.config();
    let output = run(&["serve", "--strict", "--config", config.to_str().unwrap()]).await;
    let said = shown(&output);
    assert!(said.contains("tenant.toml:2: cors: is `origins`, and holds for WebSockets too"), "{said}");
}

/// A browser asks before it sends headers of its own, and then uses the connection again.
#[tokio::test]
async fn a_preflight_is_answered_and_its_connection_is_used_again() {
    let relay = tenant("", &format!("origins = [\"{LISTED}\"]")).await;
    let ask = |path: &str, headers: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: a\r\nOrigin: {LISTED}\r\nAccess-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: {headers}\r\n\r\n"
        )
    };
    let headers = "authorization,cache-control,last-event-id,x-requested-with";
    for (path, kind) in [("/t/channels/main", "application/json"), ("/t/sse", "text/event-stream")] {
        let mut http = Http::connect(relay.clients).await;
        http.send(ask(path, headers)).await;
        let head = http.head().await;
        assert_eq!((head.status, head.header("access-control-allow-methods")), (204, Some("GET")), "{path}");
        assert_eq!(head.header("access-control-allow-headers"), Some(headers), "{path}");
        assert_eq!(head.header("access-control-allow-credentials"), Some("true"), "{path}");
        http.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nOrigin: {LISTED}\r\nCache-Control: no-cache\r\n\r\n"))
            .await;
        let head = http.head().await;
        assert_eq!((head.status, head.header("content-type")), (200, Some(kind)), "{path}");
    }
    assert_eq!(relay.metric("edge_relay_handshakes_refused_total", &[]).await, 0.0);
    // Nobody comes after this one.
    let relay = tenant("handshake-timeout = \"500ms\"", &format!("origins = [\"{LISTED}\"]")).await;
    let mut raw = Raw::tcp(relay.clients).await;
    raw.send(ask("/t/sse", headers).as_bytes()).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 204 "));
    raw.ended().await;
    assert_eq!(relay.metric("edge_relay_handshakes_refused_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_address_that_is_tried_often_is_not_refused_for_preflights() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[limits]\nclients-per-address = 1");
    let relay = Relay::serve(folder).await;
    for _ in 0..5 {
        let mut http = Http::connect(relay.clients).await;
        http.request("OPTIONS", "/t/sse").await;
        assert_eq!(http.head().await.status, 204);
    }
    assert_eq!(answered(&relay, "/t/sse", "").await.0, 200);
}
