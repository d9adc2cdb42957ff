//! What all tenants share has room for a tenant that uses little, whatever another takes.

use support::{
    bombs::{self, ON_CONNECT, bomb},
    client::Client,
    guests,
    http::Http,
    partner::Partner,
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use crate::tenants::limits::refusals;

/// Connects from another address of this machine.
async fn connect_from_elsewhere(to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn clients_that_wait_for_one_tenants_handler_leave_room_for_anothers() {
    const PLACES: usize = 20;
    let folder = Folder::new(&format!("handshakes = {PLACES}")).handled("u", guests::handler(), "");
    folder.write(
        "tenants/t/tenant.toml",
        "name = \"t\"\n[components]\nclient = \"bomb.wasm\"\n[limits]\nclient-call = \"60s\"\n",
    );
    folder.write("tenants/t/bomb.wasm", bomb(&[ON_CONNECT], bombs::WAIT));
    let relay = Relay::serve(folder).await;
    let (url, mut connecting) = (relay.url("/t"), JoinSet::new());
    for _ in 0..PLACES + 10 {
        let url = url.clone();
        connecting.spawn(async move { Client::try_connect(&url).await.err().map(|error| error.to_string()) });
    }
    // Four fifths wait. The others are told to come again.
    for _ in 0..PLACES + 10 - 16 {
        let refused = connecting.join_next().await.unwrap().unwrap().unwrap();
        assert!(refused.contains("503"), "{refused}");
    }
    assert!(refusals(&relay, "handshakes").await >= 14.0);
    for _ in 0..10 {
        relay.client("/u").await;
    }
    // None of those that wait has been refused.
    assert!(connecting.try_join_next().is_none() && connecting.len() == 16);
}

#[tokio::test]
async fn silent_connections_of_one_address_leave_room_for_others() {
    const PLACES: usize = 20;
    let folder =
        Folder::new(&format!("handshakes = {PLACES}\nhandshake-timeout = \"60s\"")).handled("u", guests::handler(), "");
    let relay = Relay::serve(folder).await;
    let mut silent = Vec::new();
    for _ in 0..2 * PLACES {
        silent.push(connect_from_elsewhere(relay.clients).await);
    }
    for _ in 0..10 {
        relay.client("/u").await;
    }
    drop(silent);
}

#[tokio::test]
async fn slow_readers_of_one_tenants_channels_leave_room_for_anothers() {
    const READERS: usize = 80;
    let mut partner = Partner::start().await;
    let folder =
        Folder::new("handshake-timeout = \"60s\"").tenant("t", &partner.url(), "").tenant("u", &partner.url(), "");
    let relay = Relay::serve(folder).await;
    let mut peers = [partner.accept().await, partner.accept().await];
    let mut clients = [relay.client("/t").await, relay.client("/u").await];
    for peer in &mut peers {
        peer.send(Message::text("x".repeat(8 << 20))).await;
    }
    for client in &mut clients {
        client.text().await;
    }
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader = Http::narrow(relay.clients).await;
        reader.request("GET", "/t/channels/main").await;
        readers.push(reader);
    }
    until("a limit", async || {
        let refused = refusals(&relay, "channel-reads").await;
        if refused > 10.0 { Ok(()) } else { Err(refused.to_string()) }
    })
    .await;
    // One address has a share, too.
    for _ in 0..5 {
        let mut reader = connect_from_elsewhere(relay.clients).await;
        reader.write_all(b"GET /u/channels/main HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{:.100}", answer);
    }
}

#[tokio::test]
async fn idle_connections_to_the_api_make_room_for_newcomers() {
    let relay = Relay::serve(Folder::new("api-connections = 20").api("t", "")).await;
    let mut here = relay.http().await;
    assert_eq!(here.get("/t/count").await.status(), 200);
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(connect_from_elsewhere(relay.api()).await);
    }
    // Those of the other address made room for one another, not those of this one.
    assert_eq!(here.get("/t/count").await.status(), 200);
    for _ in 0..3 {
        assert_eq!(relay.http().await.get("/t/count").await.status(), 200);
    }
    relay.metric_reaches("edge_relay_api_refused_total", &[("reason", "idle")], 40.0).await;
    // The first were closed, the last are served.
    let mut last = idle.pop().unwrap();
    last.write_all(b"GET /t/count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(idle.remove(0).read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_last_of_the_hosts_clients_are_for_tenants_that_have_few() {
    const CLIENTS: usize = 34;
    let mut partner = Partner::start().await;
    let folder =
        Folder::new(&format!("clients = {CLIENTS}")).tenant("t", &partner.url(), "").tenant("u", &partner.url(), "");
    let relay = Relay::serve(folder).await;
    let _peers = [partner.accept().await, partner.accept().await];
    let mut clients = Vec::new();
    while let Ok(client) = Client::try_connect(&relay.url("/t")).await {
        clients.push(client);
    }
    assert_eq!(clients.len(), 32);
    assert_eq!(refusals(&relay, "clients").await, 1.0);
    relay.client("/u").await;
    drop(clients);
    until("room", async || Client::try_connect(&relay.url("/t")).await.map(drop).map_err(|error| error.to_string()))
        .await;
}

#[tokio::test]
async fn records_over_a_tenants_quota_are_refused_at_once_and_take_nothing() {
    let relay = Relay::serve(Folder::new("").api("t", "[limits]\nrecords = \"4KiB\"").api("u", "")).await;
    let mut http = relay.http().await;
    let refused = http.get("/t/append?to=c&rows=1&bytes=5000").await;
    assert!(refused.body.contains("as many bytes as they may"), "{refused:?}");
    assert_eq!(http.get("/t/append?to=c&rows=3&bytes=1000").await.body, "3");
    assert_eq!(refusals(&relay, "records").await, 1.0);
    assert_eq!(http.get("/u/append?to=c&rows=10&bytes=1000").await.body, "10");
}
