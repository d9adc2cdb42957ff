//! Plain WebSockets and the channels over HTTP, with the clients that people use, as the README says to use them.

use serde_json::{Value, json};
use support::{
    browser::Browser,
    client::Client,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    script::Script,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::Message;

use crate::docs::readme;

/// Returns the first block of this language in CLIENTS.md that has these words in it, with a relay's addresses.
fn block(language: &str, words: &str, relay: &Relay) -> String {
    at(readme::block(language, words), relay)
}

fn at(text: &str, relay: &Relay) -> String {
    let (clients, api) = (relay.clients.to_string(), relay.api().to_string());
    text.replace("HOST:8080", &clients).replace("HOST:8081", &api)
}

/// Serves the sample tenant. Returns the relay and the partner.
async fn market() -> (Relay, Peer) {
    let mut partner = Partner::start().await;
    let components = "[components]\nfilter = \"filter.wasm\"\napi = \"api.wasm\"";
    let folder = Folder::new("").tenant("market", &partner.url(), components);
    for role in ["filter", "api"] {
        folder.copy(guests::market(role), &format!("tenants/market/{role}.wasm"));
    }
    let relay = Relay::serve(folder).await;
    (relay, partner.accept().await)
}

/// The partner sends a product's price. Returns what clients get.
async fn tell(peer: &mut Peer, product: &str, price: &str) -> String {
    peer.text(json!({ "type": "ticker", "product_id": product, "price": price }).to_string()).await;
    json!({ "price": price, "product": product }).to_string()
}

fn same(one: &str, other: &str) {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(read(one), read(other));
}

/// Checks that a script prints all that is published, from the snapshot on, until the relay ends.
async fn prints_prices(client: impl FnOnce(&Relay) -> Option<Script>) {
    let (relay, mut peer) = market().await;
    // The relay has the price before the client connects.
    let first = tell(&mut peer, "BTC-USD", "1").await;
    let mut other = Client::connect(&relay.url("/market?channel=prices")).await;
    other.text().await;
    let Some(mut script) = client(&relay) else { return };
    same(&script.said().await, &first);
    for price in 2..100 {
        let published = tell(&mut peer, "BTC-USD", &price.to_string()).await;
        same(&script.said().await, &published);
    }
    relay.end_with(rustix::process::Signal::TERM).await;
    assert_eq!(script.rest().await, [] as [String; 0]);
}

#[tokio::test]
async fn a_pages_websocket() {
    let Some(mut browser) = Browser::start().await else { return };
    let (relay, mut peer) = market().await;
    browser.value("globalThis.logged = []; console.log = (text) => logged.push(text); null").await;
    browser.value(&format!("{}; null", block("js", "onmessage", &relay).trim_end())).await;
    browser.sees("socket.readyState === WebSocket.OPEN").await;
    for price in 1..100 {
        let published = tell(&mut peer, "BTC-USD", &price.to_string()).await;
        browser.sees(&format!("logged.length === {price}")).await;
        same(browser.value("logged.at(-1)").await.as_str().unwrap(), &published);
    }
    browser.value("globalThis.ending = new Promise((done) => { socket.onclose = done; }); null").await;
    relay.end_with(rustix::process::Signal::TERM).await;
    assert_eq!(browser.value("ending.then((close) => [close.code, close.wasClean])").await, json!([1001, true]));
}

#[tokio::test]
async fn a_pages_event_source() {
    let Some(mut browser) = Browser::start().await else { return };
    let (relay, mut peer) = market().await;
    // The page has the same origin as the stream.
    browser.open(&format!("http://{}/", relay.clients)).await;
    browser.sees("document.readyState === 'complete'").await;
    browser.value("globalThis.logged = []; console.log = (...all) => logged.push(all); null").await;
    browser.value(&format!("{}; null", block("js", "EventSource", &relay).trim_end())).await;
    browser.sees("events.readyState === EventSource.OPEN").await;
    for price in 1..=20 {
        let published = tell(&mut peer, "BTC-USD", &price.to_string()).await;
        browser.sees(&format!("logged.length === {price}")).await;
        same(browser.value("logged.at(-1)[0]").await.as_str().unwrap(), &published);
        let id = browser.value("logged.at(-1)[1]").await;
        assert!(id.as_str().unwrap().ends_with(&format!(":{price}")), "{id}");
    }
}

#[tokio::test]
async fn curl_follows_events() {
    let (relay, mut peer) = market().await;
    let Some(mut curl) = Script::curl(block("sh", "curl -N", &relay).trim()) else { return };
    assert_eq!(curl.said().await, "retry: 2000");
    let published = tell(&mut peer, "BTC-USD", "1").await;
    let data = loop {
        if let Some(data) = curl.said().await.strip_prefix("data: ") {
            break data.to_owned();
        }
    };
    same(&data, &published);
}

#[tokio::test]
async fn nodes_ws() {
    prints_prices(|relay| Script::node(&block("js", "from \"ws\"", relay), &[])).await;
}

#[tokio::test]
async fn pythons_websockets() {
    prints_prices(|relay| Script::python(&block("python", "websockets", relay), &[])).await;
}

#[tokio::test]
async fn binary_messages_arrive_whole() {
    let relay = Relay::serve(Folder::new("").handled("market", guests::handler(), "")).await;
    let node = Script::node(&block("js", "from \"ws\"", &relay), &[]);
    let python = Script::python(&block("python", "websockets", &relay), &[]);
    let (Some(mut node), Some(mut python)) = (node, python) else { return };
    let mut publisher = relay.client("/market?channels=").await;
    until("both clients", async || {
        publisher.send(Message::text("subscribers prices")).await;
        let count = publisher.text().await;
        if count == "2" { Ok(()) } else { Err(count) }
    })
    .await;
    publisher.send(Message::text("publish-large prices 8")).await;
    assert_eq!(node.said().await, "<Buffer 00 00 00 00 00 00 00 01>");
    assert_eq!(python.said().await, r"b'\x00\x00\x00\x00\x00\x00\x00\x01'");
}

#[tokio::test]
async fn curl_reads_channels_and_the_api() {
    let (relay, mut peer) = market().await;
    let mut client = Client::connect(&relay.url("/market?channel=prices")).await;
    for (product, price) in [("BTC-USD", "1"), ("ETH-USD", "2"), ("BTC-USD", "3")] {
        tell(&mut peer, product, price).await;
        client.text().await;
    }
    let read = block("sh", "/channels/", &relay);
    let [newest, since, snapshot] = read.trim().lines().collect::<Vec<_>>()[..] else { panic!("{read}") };
    let Some(mut curl) = Script::curl(newest) else { return };
    let page = curl.said_json().await;
    assert_eq!((page["offset"].as_u64(), page["publications"].as_array().unwrap().len()), (Some(3), 3));
    let position = format!("{}:1", page["epoch"].as_str().unwrap());
    let page = Script::curl(&since.replace("EPOCH:41", &position)).unwrap().said_json().await;
    let offsets = |page: &Value| {
        let publications = page["publications"].as_array().unwrap().clone();
        publications.iter().map(|publication| publication["offset"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((page["recovered"].as_bool(), offsets(&page)), (Some(true), vec![2, 3]));
    let page = Script::curl(snapshot).unwrap().said_json().await;
    assert_eq!(offsets(&page), [2, 3]);
    let prices = Script::curl(block("sh", "/public", &relay).trim()).unwrap().said_json().await;
    assert_eq!(prices, json!({ "BTC-USD": "3", "ETH-USD": "2" }));
}
