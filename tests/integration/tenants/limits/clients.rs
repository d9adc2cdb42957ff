//! How many clients a tenant may have, and how many of them from one address.

use support::{
    client::Client,
    guests,
    partner::Partner,
    raw::{Raw, request},
    relay::Relay,
    tenant::Folder,
    until,
};

use crate::{
    entry::handshakes::refusal,
    tenants::limits::{Manifest, refusals, refusals_reach},
};

const DOORS: [&str; 3] = ["/t", "/t/connection/websocket", "/t/sse"];

/// A client's request over a transport, with more headers.
fn at(relay: &Relay, door: &str, more: &str) -> String {
    let request = match door {
        "/t/sse" => "GET /t/sse HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        door => request(relay.clients, door),
    };
    request.replace("\r\n\r\n", &format!("\r\n{more}\r\n"))
}

/// Connects a client over a transport.
async fn let_in(relay: &Relay, door: &str, more: &str) -> Raw {
    let mut raw = Raw::tcp(relay.clients).await;
    raw.send(at(relay, door, more).as_bytes()).await;
    let head = raw.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 200 "), "{door}: {head}");
    raw
}

/// Checks that a client is refused over a transport with this status and code, and told when to come again.
async fn refused(relay: &Relay, door: &str, more: &str, status: u16, code: &str) {
    let (found, head, reason, _) = refusal(relay, &at(relay, door, more)).await;
    assert_eq!((found, reason.as_str()), (status, code), "{door}: {head}");
    assert!(head.to_ascii_lowercase().contains("retry-after: "), "{door}: {head}");
}

#[tokio::test]
async fn a_tenants_clients_are_limited_over_all_transports() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[limits]\nclients = 3").tenant("u", &partner.url(), "");
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let mut clients = Vec::new();
    for door in DOORS {
        clients.push(let_in(&relay, door, "").await);
    }
    for (door, times) in DOORS.into_iter().zip([1.0, 2.0, 3.0]) {
        refused(&relay, door, "", 503, "clients").await;
        assert_eq!(refusals(&relay, "clients").await, times);
    }
    assert_eq!(relay.metric("edge_relay_handshakes_refused_total", &[("reason", "clients")]).await, 3.0);
    // Another tenant has a limit of its own.
    relay.client("/u").await;
    clients.pop();
    let again = until("room for another", async || {
        Client::try_connect(&relay.url("/t")).await.map_err(|error| error.to_string())
    })
    .await;
    // With a lower limit, connected clients stay. With a higher one, there is room at once.
    manifest.change(&relay, "clients = 3", "clients = 1", "applied", 1.0).await;
    refused(&relay, "/t", "", 503, "clients").await;
    assert_eq!(relay.metric("edge_relay_clients", &[("tenant", "t")]).await, 3.0);
    manifest.change(&relay, "clients = 1", "clients = 4", "applied", 2.0).await;
    let _fourth = let_in(&relay, "/t", "").await;
    drop(again);
}

#[tokio::test]
async fn clients_that_a_handler_lets_in_at_once_are_no_more_than_may_be() {
    let limits = "[limits]\nclients = 1\nclient-call = \"10s\"";
    let relay = Relay::serve(Folder::new("").handled("t", guests::handler(), limits)).await;
    let connect = async || Client::try_connect(&relay.url("/t?busy=300")).await;
    let (first, second, third) = tokio::join!(connect(), connect(), connect());
    let let_in = [first, second, third].into_iter().filter_map(Result::ok).collect::<Vec<_>>();
    assert_eq!(let_in.len(), 1, "the handler let in all of them");
    assert_eq!(refusals(&relay, "clients").await, 2.0);
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, 1.0);
}

#[tokio::test]
async fn clients_of_an_address_are_limited_with_the_address_that_proxies_tell() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[limits]\nclients-per-address = 1");
    let config = std::fs::read_to_string(folder.config()).unwrap();
    folder.write("relay.toml", format!("trusted-proxies = [\"127.0.0.1\"]\n{config}"));
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let from = |address: &str| format!("X-Forwarded-For: 198.51.100.9, {address}\r\n");
    let mut clients = Vec::new();
    let mut times = 0.0;
    for (door, nth) in DOORS.into_iter().zip(1..) {
        // One address for each transport. There the next client is refused over every transport.
        let address = from(&format!("203.0.113.{nth}"));
        clients.push(let_in(&relay, door, &address).await);
        for door in DOORS {
            refused(&relay, door, &address, 429, "clients_per_address").await;
            times += 1.0;
        }
    }
    assert_eq!(refusals(&relay, "clients-per-address").await, times);
    let counted = relay.metric("edge_relay_handshakes_refused_total", &[("reason", "clients_per_address")]).await;
    assert_eq!(counted, times);
    // An IPv6 network of 64 bits is one address.
    clients.push(let_in(&relay, "/t", &from("2001:db8:0:1::1")).await);
    refused(&relay, "/t", &from("2001:db8:0:1:ffff::2"), 429, "clients_per_address").await;
    clients.push(let_in(&relay, "/t", &from("2001:db8:0:2::1")).await);
    // An `EventSource` gets the error too, and not an answer that has it come again for ever.
    refused(
        &relay,
        "/t/sse",
        &format!("Accept: text/event-stream\r\n{}", from("203.0.113.1")),
        429,
        "clients_per_address",
    )
    .await;
    // When a client has gone, another one of its address may come.
    clients.remove(0);
    until("room for another", async || {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(at(&relay, "/t", &from("203.0.113.1")).as_bytes()).await;
        let head = raw.head().await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head) }
    })
    .await;
    manifest.change(&relay, "clients-per-address = 1", "clients-per-address = 2", "applied", 1.0).await;
    clients.push(let_in(&relay, "/t", &from("2001:db8:0:2::2")).await);
    refused(&relay, "/t", &from("2001:db8:0:2::3"), 429, "clients_per_address").await;
    refusals_reach(&relay, "clients-per-address", times + 3.0).await;
}
