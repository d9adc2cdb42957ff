//! Which door a request leads to, and what is asked there: hosts, paths, names of channels, health checks.

use support::{
    guests,
    http::Http,
    partner::Partner,
    raw::{Raw, request},
    relay::{Relay, http, status},
    tenant::Folder,
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::handshakes::refusal;

/// A tenant that serves what its partner sends.
async fn feed(limits: &str, more: &str) -> (Relay, Partner) {
    let partner = Partner::start().await;
    (Relay::serve(Folder::new(limits).tenant("t", &partner.url(), more)).await, partner)
}

#[tokio::test]
async fn a_host_that_a_tenant_owns_is_its_own_on_every_path() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("other", &partner.url(), "").api("also", "path = \"/also\"");
    folder.allow("hosts = [\"own.test\"]\nnetworks = [\"127.0.0.0/8\"]");
    folder.write("tenants/own/tenant.toml", "name = \"own\"\nhosts = [\"own.test\"]\npath = \"/own\"\n");
    let relay = Relay::serve(folder).await;
    let ask = async |address, host: &str, path: &str| {
        let asked = request(address, path).replace(&format!("Host: {address}"), &format!("Host: {host}"));
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64];
        let length = within("an answer", socket.read(&mut answer)).await.unwrap();
        status(std::str::from_utf8(&answer[..length]).unwrap())
    };
    for (host, path, expected) in [
        ("own.test", "/own", 101),
        ("own.test", "/other", 404),
        ("own.test", "/other/sse", 404),
        ("OWN.test:80", "/other", 404),
        ("else.test", "/other", 101),
        ("else.test", "/own", 404),
    ] {
        assert_eq!(ask(relay.clients, host, path).await, expected, "{host}{path}");
    }
    assert_eq!(ask(relay.api(), "own.test", "/also/count").await, 404);
    assert_eq!(ask(relay.api(), "else.test", "/also/count").await, 200);
}

#[tokio::test]
async fn a_client_that_ends_its_side_behind_its_request_is_answered() {
    let relay = Relay::serve(Folder::new("").api("t", "").handled("h", guests::handler(), "")).await;
    assert_eq!(relay.api_get("/t/publish?channel=main&text=news").await.0, 200);
    for (address, path, expected) in [
        (relay.clients, "/t/channels/main", "news"),
        (relay.clients, "/h/channels/private", "private is private"),
        (relay.api(), "/t/stream?chunks=3&ms=100", "0\r\n\r\n"),
        (relay.admin(), "/metrics", "# EOF"),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        within("an answer", socket.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 ") && answer.contains(expected), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_channels_name_is_never_made_another() {
    let (relay, _partner) = feed("", "").await;
    for path in ["/t?channel=%ff", "/t?channel=a%c3", "/t/sse?channel=%ff", "/t?since=1:1&channel=%80"] {
        let (status, head, code, message) = refusal(&relay, &request(relay.clients, path)).await;
        assert_eq!((status, code.as_str()), (400, "channel"), "{path}: {head}");
        assert!(message.contains("UTF-8"), "{message}");
    }
    let (status, ..) = refusal(&relay, &request(relay.clients, "/t/channels/%ff")).await;
    assert_eq!(status, 404);
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut client = relay.client("/t?channel=a%2Fb%25%2B").await;
    assert_eq!(relay.api_get("/t/publish?channel=a/b%+&text=news").await.0, 200);
    assert_eq!(client.text().await, "news");
    let page = Http::connect(relay.clients).await.get("/t/channels/a%2Fb%25%2B").await;
    assert!(page.body.contains("news"), "{page:?}");
}

#[tokio::test]
async fn a_client_that_names_no_channel_is_told_which_there_are() {
    let listed = "[channels.\"prices\"]\n[channels.\"news-*\"]";
    let (relay, _partner) = feed("", listed).await;
    for path in ["/t", "/t/sse"] {
        let (status, head, code, message) = refusal(&relay, &request(relay.clients, path)).await;
        assert_eq!((status, code.as_str()), (400, "channel"), "{head}");
        assert!(message.contains("prices, news-*") && message.contains("?channel=NAME"), "{message}");
    }
    relay.client("/t?channel=main").await;
    // Where a pattern covers it, nobody has to name it.
    let (relay, _partner) = feed("", "[channels.\"m*\"]").await;
    relay.client("/t").await;
    // Nor where the tenant's code gives channels.
    let relay = Relay::serve(Folder::new("").handled("h", guests::handler(), listed)).await;
    relay.client("/h?channels=prices").await;
    assert_eq!(refusal(&relay, &request(relay.clients, "/h")).await.0, 400);
}

#[tokio::test]
async fn a_publication_on_a_channel_that_is_not_listed_is_counted_apart() {
    let relay = Relay::serve(Folder::new("").api("t", "[channels.\"prices\"]")).await;
    for channel in ["prices", "other", "another", "main", "other"] {
        assert_eq!(relay.api_get(&format!("/t/publish?channel={channel}&text=x")).await.0, 200);
    }
    assert_eq!(relay.metric("edge_relay_publications_unlisted_total", &[("tenant", "t")]).await, 3.0);
    assert_eq!(relay.metric("edge_relay_publications_total", &[("tenant", "t")]).await, 5.0);
    let said = relay.logged(&["WARN", "channel.name=other", "the manifest does not list"]).await;
    assert!(!said.contains("another"), "{said}");
}

#[tokio::test]
async fn a_client_may_decline_compression() {
    let relay = Relay::serve(Folder::new("").api("t", "compression = { above = 0 }")).await;
    let offers = |path: &str| {
        let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        request(relay.clients, path).replacen("\r\n\r\n", &format!("\r\n{extension}"), 1)
    };
    for (path, compressed) in [
        ("/t", true),
        ("/t?compression=on", true),
        ("/t?compression=off", false),
        ("/t/connection/websocket?compression=off", false),
        ("/t/connection/websocket", true),
    ] {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(offers(path).as_bytes()).await;
        let head = raw.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert_eq!(head.contains("permessage-deflate"), compressed, "{path}: {head}");
    }
    assert_eq!(refusal(&relay, &offers("/t?compression=maybe")).await.0, 400);
}

#[tokio::test]
async fn a_subprotocol_is_answered_where_the_manifest_lists_it() {
    let relay = Relay::serve(Folder::new("").api("t", "subprotocols = [\"v2\", \"v1\"]").api("none", "")).await;
    let offers = |path: &str, names: &str, more: &str| {
        let header = format!("Sec-WebSocket-Protocol: {names}\r\n{more}\r\n");
        request(relay.clients, path).replacen("\r\n\r\n", &format!("\r\n{header}"), 1)
    };
    let page = "Origin: https://app.test\r\n";
    for (path, names, more, answered) in [
        ("/t", "v1", "", Some("v1")),
        ("/t", "bearer, v1, v2", page, Some("v1")),
        ("/t", "V1", "", None),
        ("/none", "bearer, secret", "", None),
    ] {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(offers(path, names, more).as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let said = head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(said, answered, "{names}: {head}");
    }
    // A browser would drop the connection without a word.
    for (path, listed) in [("/t", "it lists v2, v1"), ("/none", "it lists none")] {
        let (status, _, code, message) = refusal(&relay, &offers(path, "bearer, secret", page)).await;
        assert_eq!((status, &*code), (400, "subprotocol"));
        assert!(message.contains(listed) && !message.contains("secret"), "{message}");
    }
    let said = relay.logged(&["WARN", "tenant.name=none", "offers subprotocols"]).await;
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_handler_chooses_a_subprotocol_that_is_offered() {
    let folder = Folder::new("").handled("h", guests::handler(), "");
    let manifest = "name = \"h\"\nsubprotocols = [\"listed\"]\n[components]\nclient = \"client.wasm\"\n";
    folder.write("tenants/h/tenant.toml", manifest);
    let relay = Relay::serve(folder).await;
    let offers = |path: &str, names: &str| {
        let header = format!("Origin: https://app.test\r\nSec-WebSocket-Protocol: {names}\r\n\r\n");
        request(relay.clients, path).replacen("\r\n\r\n", &format!("\r\n{header}"), 1)
    };
    for (path, names, answered) in [
        // A page has no other place for its token.
        ("/h?subprotocol=bearer", "bearer, secret", "bearer"),
        ("/h?subprotocol=bearer", "listed, bearer, secret", "bearer"),
        ("/h", "bearer, listed", "listed"),
    ] {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(offers(path, names).as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let said = head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(said, Some(answered), "{path} {names}: {head}");
    }
    let (status, _, code, _) = refusal(&relay, &offers("/h", "bearer, secret")).await;
    assert_eq!((status, &*code), (400, "subprotocol"), "neither the handler nor the manifest takes one");
    // Clients would drop what they have not offered.
    for asked in [offers("/h?subprotocol=v9", "bearer, secret"), request(relay.clients, "/h?subprotocol=v9")] {
        let (status, _, code, message) = refusal(&relay, &asked).await;
        assert_eq!((status, &*code), (500, "handler"));
        assert!(message.contains("not offered"), "{message}");
    }
    relay.metric_is("edge_relay_guest_failures_total", &[("reason", "subprotocol")], 2.0).await;
    relay.logged(&["WARN", "tenant.name=h", "v9", "is not among what the client offers"]).await;
}

/// As HAProxy, nginx, ELB and Kubernetes ask.
#[tokio::test]
async fn health_checks_are_answered_by_every_listener() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "path = \"/\"").api("a", "");
    let relay = Relay::serve(folder).await;
    for address in [relay.clients, relay.api(), relay.admin()] {
        for asked in [
            "GET /healthz HTTP/1.0\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET http://a.test/healthz HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
            "GET /healthz?from=balancer HTTP/1.0\r\nUser-Agent: x\r\n\r\n",
        ] {
            let (head, body) = within("an answer", http(address, asked)).await;
            assert_eq!((status(&head), &*body), (200, r#"{"status":"ok"}"#), "{address} {asked}: {head}");
        }
        let asked = "HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let (head, body) = within("an answer", http(address, asked)).await;
        assert_eq!((status(&head), &*body), (200, ""), "{address}: {head}");
        let (head, _) = within("an answer", http(address, "POST /healthz HTTP/1.0\r\n\r\n")).await;
        assert_eq!(status(&head), 405);
    }
    assert_eq!(relay.metric("edge_relay_handshakes_refused_total", &[]).await, 0.0);
}

#[tokio::test]
async fn silent_connections_do_not_keep_the_admin_listener_from_answering() {
    let (relay, _partner) = feed("", "").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(relay.admin()).await.unwrap());
    }
    // Those would be there for ten seconds.
    let mut best = std::time::Duration::MAX;
    for _ in 0..5 {
        let began = std::time::Instant::now();
        assert_eq!(relay.get("/healthz").await.0, 200);
        best = best.min(began.elapsed());
    }
    assert!(best < std::time::Duration::from_secs(1), "{best:?}");
}

#[tokio::test]
async fn no_answer_of_the_hosts_may_be_kept() {
    let relay = Relay::serve(Folder::new("").api("t", "").handled("h", guests::handler(), "")).await;
    assert_eq!(relay.api_get("/t/publish?channel=main&text=news").await.0, 200);
    for (address, path) in [
        (relay.clients, "/t/channels/main"),
        (relay.clients, "/t/channels/main/snapshot"),
        (relay.clients, "/t/channels/none"),
        (relay.clients, "/t"),
        (relay.clients, "/none"),
        (relay.clients, "/h/sse?trap"),
        (relay.clients, "/h/sse?reject=403"),
        (relay.clients, "/healthz"),
        (relay.api(), "/none"),
        (relay.api(), "/t/trap"),
        (relay.admin(), "/metrics"),
        (relay.admin(), "/readyz"),
        (relay.admin(), "/none"),
    ] {
        let mut http = Http::connect(address).await;
        http.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")).await;
        let head = http.head().await;
        assert_eq!(head.header("cache-control"), Some("no-store"), "{path}: {head:?}");
    }
}
