//! Many tenants on one host: how each is reached, that none sees anything of another, and what an idle one holds.

use support::{
    client::Client,
    guests,
    partner::Partner,
    raw::{Raw, request},
    relay::{Relay, http, status},
    tenant::Folder,
    within,
};
use tokio_tungstenite::tungstenite::Message;

const CLIENT: &str = "components.client = \"client.wasm\"\ncomponents.api = \"api.wasm\"\n";

/// Serves tenants whose handler and API do what clients tell them, each with these keys in its manifest.
async fn serve(tenants: &[(&str, &str)]) -> Relay {
    let folder = Folder::new("");
    folder.allow("hosts = [\"feed.example\", { host = \"other.example\", tenants = [\"by-host\"] }]");
    for (name, keys) in tenants {
        folder.write(&format!("tenants/{name}/tenant.toml"), format!("name = \"{name}\"\n{keys}\n{CLIENT}"));
        folder.copy(guests::handler(), &format!("tenants/{name}/client.wasm"));
        folder.copy(guests::api(), &format!("tenants/{name}/api.wasm"));
    }
    Relay::serve(folder).await
}

async fn ask(client: &mut Client, command: &str) -> String {
    client.send(Message::text(command)).await;
    client.text().await
}

/// Returns the tenant that a client with this `Host` reaches at this path, by the name that its handler has kept.
async fn reached(relay: &Relay, host: &str, path: &str) -> Option<String> {
    let asked = request(relay.clients, path).replace(&format!("Host: {}", relay.clients), &format!("Host: {host}"));
    let socket = tokio::net::TcpStream::connect(relay.clients).await.unwrap();
    let mut raw = Raw::from(socket);
    raw.send(asked.as_bytes()).await;
    let head = raw.head().await;
    if !head.starts_with("HTTP/1.1 101 ") {
        assert_eq!(status(&head), 404, "{head}");
        return None;
    }
    raw.send(&support::raw::frame(0x81, b"get name")).await;
    Some(String::from_utf8(raw.frame().await.unwrap().payload).unwrap())
}

/// Sends such a request to the API. Returns the answer's body, if a tenant answered.
async fn api_reached(relay: &Relay, host: &str, path: &str) -> Option<String> {
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let (head, body) = within(path, http(relay.api(), asked)).await;
    (status(&head) == 200).then_some(body)
}

#[tokio::test]
async fn each_is_reached_by_its_path_or_its_hosts() {
    let tenants = [
        ("by-name", ""),
        ("by-path", "path = \"/deep/er\""),
        ("everywhere", "path = \"/\""),
        ("by-host", "hosts = [\"Feed.Example\", \"other.example\"]"),
        ("by-both", "hosts = [\"feed.example\"]\npath = \"/more\""),
    ];
    let relay = serve(&tenants).await;
    for (name, host, path) in [
        ("by-name", "any", "/by-name"),
        ("by-path", "any", "/deep/er"),
        ("everywhere", "any", "/"),
        ("by-host", "feed.example", "/"),
        ("by-both", "feed.example", "/more"),
    ] {
        let path = format!("{path}?channels=");
        let asked =
            request(relay.clients, &path).replace(&format!("Host: {}", relay.clients), &format!("Host: {host}"));
        let mut raw = Raw::from(tokio::net::TcpStream::connect(relay.clients).await.unwrap());
        raw.send(asked.as_bytes()).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 101 "), "{name}");
        raw.send(&support::raw::frame(0x81, format!("set name {name}\nget name").as_bytes())).await;
        assert_eq!(raw.frame().await.unwrap().payload, name.as_bytes());
    }
    for (host, path, wanted) in [
        ("127.0.0.1", "/by-name", "by-name"),
        ("any.example:8080", "/by-name/", "by-name"),
        ("any.example", "/deep/er", "by-path"),
        ("any.example", "/", "everywhere"),
        ("feed.example", "/", "by-host"),
        ("FEED.example.:8080", "/", "by-host"),
        ("other.example", "/", "by-host"),
        ("feed.example", "/more", "by-both"),
        ("sub.feed.example", "/", "everywhere"),
    ] {
        assert_eq!(reached(&relay, host, path).await.as_deref(), Some(wanted), "{host}{path}");
    }
    // Tenants with `hosts` are reached at these hosts only, and the others at every host that nobody has.
    for (host, path) in [
        ("any.example", "/more"),
        ("any.example", "/deep"),
        ("other.example", "/more"),
        ("feed.example", "/mo"),
        ("feed.example", "/by-name"),
        ("other.example", "/deep/er"),
    ] {
        assert_eq!(reached(&relay, host, path).await, None, "{host}{path}");
    }
    for (host, path, wanted) in [
        ("any.example", "/by-name/request", "\"/request\""),
        ("any.example", "/deep/er/request", "\"/request\""),
        ("feed.example", "/request", "\"/request\""),
        ("feed.example", "/more/request", "\"/request\""),
    ] {
        let body = api_reached(&relay, host, path).await.unwrap_or_default();
        assert!(body.contains(wanted.trim_matches('"')), "{host}{path}: {body}");
    }
}

#[tokio::test]
async fn nothing_of_one_is_visible_to_another() {
    let relay = serve(&[("t", ""), ("u", "")]).await;
    let mut one = relay.client("/t?channel=main").await;
    let mut other = relay.client("/u?channel=main").await;
    // Channels are apart.
    assert_eq!(ask(&mut one, "subscribers main").await, "1");
    assert_eq!(ask(&mut other, "subscribers main").await, "1");
    assert_eq!(ask(&mut one, "publish main secret").await, "secret");
    other.has_no_more().await;
    // State is apart.
    assert_eq!(ask(&mut one, "set key secret\nget key").await, "secret");
    assert_eq!(ask(&mut other, "get key").await, "");
    // A client's id means nothing to another tenant.
    let id = ask(&mut other, "id").await;
    assert!(ask(&mut one, &format!("kick {id} 4000 out")).await.starts_with("Ok"));
    assert_eq!(ask(&mut other, "reply here").await, "here");
    // A frame for an upstream reaches no other tenant's.
    one.send(Message::text("upstream feed secret\nreply sent")).await;
    assert_eq!(one.text().await, "sent");
    // The log and the metrics name the tenant.
    one.send(Message::text("log from the one\ntrap")).await;
    one.text().await;
    let log = relay.logged(&["from the one", "tenant.name=t"]).await;
    assert!(!log.contains("tenant.name=u"), "{log}");
    let failures = "edge_relay_guest_failures_total";
    assert!(relay.metric(failures, &[("tenant", "t")]).await > 0.0);
    assert_eq!(relay.metric(failures, &[("tenant", "u")]).await, 0.0);
    // Errors to clients name no tenant.
    for path in ["/v", "/t/nowhere", "/u/channels/none/snapshot/more"] {
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        for listener in [relay.clients, relay.api()] {
            let (_, body) = within(path, http(listener, &asked)).await;
            for name in ["\"t\"", "\"u\"", "tenant t", "tenant u", "tenants/"] {
                assert!(!body.contains(name), "{path}: {body}");
            }
        }
    }
    // The listeners of clients and of APIs do not serve the operator's paths.
    for path in ["/metrics", "/readyz"] {
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        for listener in [relay.clients, relay.api()] {
            assert_eq!(status(&within(path, http(listener, &asked)).await.0), 404, "{path}");
        }
    }
}

#[tokio::test]
async fn an_idle_tenant_has_neither_instance_nor_socket() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\ninstance-idle = \"200ms\"\n";
    let components = "[components]\nfilter = \"filter.wasm\"\nclient = \"client.wasm\"\napi = \"api.wasm\"\n";
    let more = format!("connect = \"on-demand\"\nlinger = \"1s\"\n{components}{limits}");
    let folder = Folder::new("").tenant("t", &partner.url(), &more);
    folder.write("tenants/t/filter.wasm", guests::versioned(1));
    folder.copy(guests::handler(), "tenants/t/client.wasm");
    folder.copy(guests::api(), "tenants/t/api.wasm");
    let relay = Relay::serve(folder).await;
    let instances = async |wanted| relay.metric_is("edge_relay_guest_instances", &[("tenant", "t")], wanted).await;
    assert_eq!(relay.metric("edge_relay_guest_instances", &[]).await, 0.0, "no client has come yet");
    assert_eq!(partner.connections(), 0);
    for round in 1..=2 {
        let mut client = relay.client("/t?channel=out").await;
        let mut peer = partner.accept().await;
        peer.text("hello").await;
        assert_eq!(client.text().await, "hello code-0001 0001 ");
        assert_eq!(relay.api_get("/t/count").await, (200, "1".into()), "the instance before has gone");
        assert_eq!(relay.metric("edge_relay_upstream_state", &[("state", "live")]).await, 1.0);
        // The filter's instance stays with its connection. The other instances go, even while there are clients.
        instances(1.0).await;
        drop(client);
        assert_eq!(peer.ended().await, Some(1000));
        instances(0.0).await;
        assert_eq!(partner.connections(), round);
    }
}
