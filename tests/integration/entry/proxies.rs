//! Clients behind other people's proxies, with the configurations of docs/PROXIES.md.

use std::{fs, net::TcpListener};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    behind_each_front,
    browser::Browser,
    client::Client,
    front::{self, API_NAME, Front, Gateway},
    guests,
    http::{Head, Http},
    loopback,
    partner::Partner,
    probe::Probe,
    raw::{FIN, Raw, TEXT, frame, request},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

/// The functions that tests call in the page.
const LIBRARY: &str = include_str!("../../clients/events.js");

/// Headers in which a client says that it is another, or that the proxy is.
const FORGED: &str = "X-Forwarded-For: 6.6.6.1\r\nX-Real-IP: 6.6.6.2\r\nCF-Connecting-IP: 6.6.6.3\r\n\
    Forwarded: for=6.6.6.4\r\nX-Forwarded-Host: 6.6.6.5\r\nX-Forwarded-Port: 6.6.6.6\r\n\
    X-Forwarded-Prefix: /6.6.6.7\r\nX-Forwarded-Proto: 6.6.6.8\r\nX_Forwarded_For: 6.6.6.9\r\n";

behind_each_front!(
    a_websocket_is_served,
    events_come_at_once,
    a_channels_name_arrives_as_it_was_encoded,
    the_api_is_asked_and_answers_piece_by_piece,
    a_client_of_the_centrifuge_protocol_is_served,
    a_client_has_its_own_address_whatever_it_writes,
    clients_of_an_address_are_limited_whatever_they_write,
    an_event_source_is_told_to_come_again_while_the_relay_is_away,
);

/// A relay behind a proxy. Tenant `t` has a filter, a handler and an API that do what they are told.
struct Scene {
    partner: Partner,
    relay: Relay,
    gateway: Gateway,
    probe: Probe,
}

impl Scene {
    async fn behind(front: Front) -> Option<Self> {
        Self::with(front, "").await
    }

    /// Has these limits in the tenant's manifest.
    async fn with(front: Front, limits: &str) -> Option<Self> {
        let mut partner = Partner::start().await;
        let more = format!("client = \"client.wasm\"\napi = \"api.wasm\"\n[limits]\n{limits}");
        let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), &more);
        folder.copy(guests::handler(), "tenants/t/client.wasm");
        folder.copy(guests::api(), "tenants/t/api.wasm");
        let manifest = fs::read_to_string(folder.path("tenants/t/tenant.toml")).unwrap();
        folder.write("tenants/t/tenant.toml", format!("origins = [\"*\"]\n{manifest}"));
        // Ports of its own, so that it can be started again where it was.
        let address = loopback();
        let free = ["clients", "api", "admin"].map(|name| (name, TcpListener::bind((address, 0)).unwrap()));
        let mut host = fs::read_to_string(folder.config()).unwrap();
        for (name, listener) in &free {
            let own = format!("{name} = \"{}\"", listener.local_addr().unwrap());
            host = host.replace(&format!("{name} = \"127.0.0.1:0\""), &own);
        }
        drop(free);
        folder.write("relay.toml", front::relay_keys() + &host);
        let relay = Relay::serve_with(folder, &[("EDGE_RELAY_LOG", "debug")]).await;
        let gateway = front.start(&relay).await?;
        let probe = Probe::new(&relay, &mut partner, "t").await;
        Some(Self { partner, relay, gateway, probe })
    }

    /// The URL where clients connect to the proxy.
    fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.gateway.address)
    }

    async fn http(&self) -> Http {
        Http::connect(self.gateway.address).await
    }

    async fn publish(&mut self, channel: &str, text: &str) {
        assert_eq!(self.probe.ask(&format!("publish {channel} {text}")).await, "Ok(())");
    }
}

/// Reads an event stream, which a proxy may send in chunks, up to these words.
async fn read_to(words: &str, stream: &mut Http, head: &Head) {
    let mut text = String::new();
    while !text.contains(words) {
        let more = match head.header("transfer-encoding") {
            Some(_) => stream.chunk().await,
            None => stream.line().await + "\n",
        };
        assert!(!more.is_empty(), "the stream has ended after {text:?}");
        text += &more;
    }
}

async fn a_websocket_is_served(front: Front) {
    let Some(mut scene) = Scene::behind(front).await else { return };
    let mut client = Client::connect(&scene.url("/t?channel=news")).await;
    client.settle().await;
    scene.publish("news", "first").await;
    assert_eq!(client.text().await, "first");
    client.send(Message::text("reply fine")).await;
    assert_eq!(client.text().await, "fine");
    let large = vec![7_u8; 60_000];
    client.send(Message::binary(large.clone())).await;
    assert_eq!(client.message().await, Message::binary(large));
}

async fn events_come_at_once(front: Front) {
    let Some(mut scene) = Scene::behind(front).await else { return };
    let mut stream = scene.http().await;
    stream.send("GET /t/sse?channel=news HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let head = stream.head().await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    read_to("id: ", &mut stream, &head).await;
    for number in 1..=3 {
        // The next one is published only when this one has come.
        scene.publish("news", &format!("number-{number}")).await;
        read_to(&format!("data: number-{number}\n"), &mut stream, &head).await;
    }
}

async fn a_channels_name_arrives_as_it_was_encoded(front: Front) {
    let Some(mut scene) = Scene::behind(front).await else { return };
    for (channel, encoded) in
        [("a/b%c+", "a%2Fb%25c%2B"), ("a//b+", "a%2F%2Fb+"), ("a%2Fb", "a%252Fb"), ("\u{e9}?", "%C3%A9%3F")]
    {
        scene.publish(channel, encoded).await;
        let answer = scene.http().await.get(&format!("/t/channels/{encoded}")).await;
        assert_eq!(answer.status(), 200, "{channel}: {answer:?}");
        assert_eq!(answer.json()["publications"][0]["data"], encoded, "{channel}");
    }
    let answer = scene.http().await.get("/t/channels/a/b").await;
    assert_eq!(answer.envelope(), (404, "not_found".to_owned()));
}

async fn the_api_is_asked_and_answers_piece_by_piece(front: Front) {
    let Some(scene) = Scene::behind(front).await else { return };
    let mut http = scene.http().await;
    let head = format!("POST /t/length HTTP/1.1\r\nHost: {API_NAME}\r\nContent-Length: 5\r\n\r\n");
    http.send(format!("{head}hello")).await;
    assert_eq!(http.answer().await.body, "5");
    http.send(format!("GET /t/stream?chunks=10&ms=300 HTTP/1.1\r\nHost: {API_NAME}\r\n\r\n")).await;
    assert_eq!(http.head().await.status, 200);
    let first = http.chunk().await;
    assert!(first.starts_with("chunk 0\n") && !first.contains("chunk 9\n"), "{first}");
}

async fn a_client_of_the_centrifuge_protocol_is_served(front: Front) {
    let Some(mut scene) = Scene::behind(front).await else { return };
    let mut client = Client::connect(&scene.url("/t/connection/websocket")).await;
    let mut answer = async |command: Value| {
        client.send(Message::text(command.to_string())).await;
        serde_json::from_str::<Value>(&client.text().await).unwrap()
    };
    let connected = answer(json!({ "id": 1, "connect": {} })).await;
    assert!(connected["connect"]["client"].is_string(), "{connected}");
    let subscribed = answer(json!({ "id": 2, "subscribe": { "channel": "news" } })).await;
    assert!(subscribed["subscribe"].is_object(), "{subscribed}");
    scene.publish("news", "first").await;
    let push: Value = serde_json::from_str(&client.text().await).unwrap();
    assert_eq!((&push["push"]["channel"], &push["push"]["pub"]["data"]), (&json!("news"), &json!("first")));
}

async fn a_client_has_its_own_address_whatever_it_writes(front: Front) {
    let Some(scene) = Scene::behind(front).await else { return };
    let address = loopback();
    let mut raw = Raw::from(scene.gateway.connect(address).await);
    let asked = request(scene.gateway.address, "/t").replace("\r\n\r\n", &format!("\r\n{FORGED}\r\n"));
    raw.send(asked.as_bytes()).await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw.send(&frame(FIN | TEXT, b"request")).await;
    let seen = String::from_utf8(raw.frame_but_pings().await.unwrap().payload).unwrap();
    assert_eq!(seen.lines().nth(2), Some(&*address.to_string()), "{seen}");
    assert!(!seen.contains("6.6.6."), "{seen}");

    let mut http = Http::from(scene.gateway.connect(address).await);
    http.send(format!("GET /t/request HTTP/1.1\r\nHost: {API_NAME}\r\n{FORGED}\r\n")).await;
    let seen = http.answer().await.json();
    let headers = seen["headers"].as_array().unwrap();
    let told: Vec<_> = headers.iter().filter(|header| header[0] == "x-forwarded-for").collect();
    assert_eq!(told, [&json!(["x-forwarded-for", address.to_string()])], "{seen}");
    assert!(!seen.to_string().contains("6.6.6."), "{seen}");

    for path in ["/t/sse", "/t/channels/main", "/t/connection/websocket"] {
        let address = loopback();
        let mut http = Http::from(scene.gateway.connect(address).await);
        http.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{FORGED}\r\n")).await;
        scene.relay.logged(&["client comes", &format!("client.address={address} ")]).await;
    }
}

async fn clients_of_an_address_are_limited_whatever_they_write(front: Front) {
    let Some(scene) = Scene::with(front, "clients-per-address = 3").await else { return };
    let address = loopback();
    let mut let_in = Vec::new();
    for nth in 1..=20 {
        let mut raw = Raw::from(scene.gateway.connect(address).await);
        let forged = FORGED.replace("6.6.6.", &format!("6.6.{nth}."));
        let asked = request(scene.gateway.address, "/t").replace("\r\n\r\n", &format!("\r\n{forged}\r\n"));
        raw.send(asked.as_bytes()).await;
        let head = raw.head().await;
        if head.starts_with("HTTP/1.1 101 ") {
            let_in.push(raw);
        } else {
            assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
        }
    }
    assert_eq!(let_in.len(), 3);
    // A client of another address has room.
    Client::connect(&scene.url("/t")).await.settle().await;
}

async fn an_event_source_is_told_to_come_again_while_the_relay_is_away(front: Front) {
    let Some(Scene { relay, gateway, .. }) = Scene::behind(front).await else { return };
    let _folder = relay.end_with(Signal::TERM).await;
    let mut http = Http::connect(gateway.address).await;
    let headers = "Accept: text/event-stream\r\nOrigin: https://app.example.com\r\n";
    http.send(format!("GET /t/sse HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).await;
    let answer = http.answer().await;
    assert_eq!((answer.status(), answer.body.as_str()), (200, "retry: 2000\n\n"));
    assert_eq!(answer.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.head.header("access-control-allow-origin"), Some("https://app.example.com"));
    // Others learn that something is wrong, also those who read a channel with this name.
    let answer = Http::connect(gateway.address).await.get("/t/channels/sse").await;
    assert!(answer.status() >= 500, "{answer:?}");
}

#[tokio::test]
async fn a_pages_event_source_goes_on_after_the_relay_was_away() {
    let Some(page) = Browser::start().await else { return };
    let Some(scene) = Scene::behind(Front::Nginx).await else { return };
    let origin = scene.gateway.address;
    goes_on(page, scene, &format!("http://{origin}/")).await;
}

#[tokio::test]
async fn an_event_source_of_another_origins_page_goes_on_after_the_relay_was_away() {
    let Some(page) = Browser::start().await else { return };
    let Some(scene) = Scene::behind(Front::Nginx).await else { return };
    let origin = scene.relay.admin();
    goes_on(page, scene, &format!("http://{origin}/healthz")).await;
}

/// Checks that a page listens through the proxy before and after the relay is started again, and is not loaded again.
async fn goes_on(mut page: Browser, mut scene: Scene, at: &str) {
    // Any answer will do.
    page.open(at).await;
    page.sees("document.readyState === 'complete'").await;
    page.value(LIBRARY).await;
    page.value(&format!("listen('http://{}/t/sse?channel=news')", scene.gateway.address)).await;
    page.sees("source.readyState === EventSource.OPEN").await;
    scene.publish("news", "before").await;
    page.sees("messages().length === 1").await;
    let folder = scene.relay.end_with(Signal::TERM).await;
    // The first is the end of its stream. The second is the end of the proxy's answer, or its refusal.
    page.sees("all('error').length >= 2").await;
    assert_ne!(page.value("source.readyState").await, 2, "it does not come again");
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut scene.partner, "t").await;
    // The probe's client and the page.
    relay.metric_is("edge_relay_clients", &[], 2.0).await;
    assert_eq!(probe.ask("publish news after").await, "Ok(())");
    page.sees("messages().length === 2").await;
    assert_eq!(page.value("messages()").await, json!(["before", "after"]));
}
