//! Recorded sessions, through `feed` and the relay to clients. The simulated exchange is always recorded. Recordings of
//! three real exchanges are used where they exist.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::SocketAddr,
    sync::Arc,
};

use serde_json::{Value, json};
use support::{
    chaos::{Chaos, Fault, Way, When},
    client::Client,
    feeds::{self, Recording, Wire},
    guests,
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

const CLIENTS: usize = 50;

/// A proxy that lets the feed's handshake pass, and no message until it goes on. Returns it with its URL.
async fn held(feed: SocketAddr) -> (Chaos, String) {
    let proxy = Chaos::start(feed).await;
    proxy.arm(When::After(Way::Down, "\r\n\r\n"), Fault::Stall);
    let url = format!("ws://{}/", proxy.address);
    (proxy, url)
}

/// Checks that every client gets exactly these messages.
async fn all_get(clients: Vec<Client>, expected: Arc<[Message]>) {
    let mut reading = JoinSet::new();
    for (id, mut client) in clients.into_iter().enumerate() {
        let expected = Arc::clone(&expected);
        reading.spawn(async move {
            for (nth, wanted) in expected.iter().enumerate() {
                let got = client.message().await;
                // `assert_eq` would print megabytes.
                assert!(got == *wanted, "client {id}, message {nth}: {:.200} instead of {:.200}", got, wanted);
            }
            client.has_no_more().await;
        });
    }
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
}

/// `frames` is the number of frames in the real exchange's recording.
async fn passes_through(wire: Wire, exchange: &str, frames: usize, speed: &str) {
    for recording in Recording::all(wire, exchange).await {
        let expected: Arc<[Message]> = recording.messages.clone().into();
        assert!(!recording.is_real || expected.len() == frames, "the recording has as many frames as its README says");
        let (_feed, address) = recording.play(speed).await;
        let (proxy, url) = held(address).await;
        let relay = Relay::pass(&url, &[]).await;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(relay.client("/").await);
        }
        proxy.go_on();
        all_get(clients, expected).await;
        assert_eq!(proxy.connections(), 1);
    }
}

#[tokio::test]
async fn coinbases_text_reaches_fifty_clients_byte_for_byte() {
    passes_through(Wire::Text, "coinbase", 9_946, "0").await;
}

#[tokio::test]
async fn upbits_binary_json_reaches_fifty_clients_byte_for_byte() {
    passes_through(Wire::Binary, "upbit", 449, "0").await;
}

/// Keeps the recorded pauses, divided, so that bursts stay bursts.
#[tokio::test]
async fn huobis_gzip_reaches_fifty_clients_byte_for_byte() {
    passes_through(Wire::Compressed, "huobi", 362, "10").await;
}

/// Returns what clients of `prices` must get, read from the recording in the simplest way.
fn price_changes(messages: &[Message]) -> Vec<Message> {
    let mut last: HashMap<String, String> = HashMap::new();
    let mut changes = Vec::new();
    for message in messages {
        let json: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if json["type"] != "ticker" {
            continue;
        }
        let (product, price) = (json["product_id"].as_str().unwrap(), json["price"].as_str().unwrap());
        if last.insert(product.to_owned(), price.to_owned()).as_deref() != Some(price) {
            changes.push(Message::text(format!(r#"{{"product":"{product}","price":"{price}"}}"#)));
        }
    }
    changes
}

/// The sample tenant as it is in the repository, with another upstream.
fn market(url: &str) -> Folder {
    let folder = Folder::new("");
    let manifest = fs::read_to_string(guests::market_folder().join("tenant.toml")).unwrap();
    let partner = "wss://ws-feed.exchange.coinbase.com";
    assert!(manifest.contains(partner), "{manifest}");
    // Summaries come sooner, to save time.
    let manifest = manifest.replace(partner, url).replace("\"300s\"", "\"100ms\"");
    folder.write("tenants/market/tenant.toml", manifest);
    for role in guests::MARKET {
        folder.copy(guests::market(role), &format!("tenants/market/{role}.wasm"));
    }
    folder
}

#[tokio::test]
async fn market_publishes_every_price_change_of_coinbase_and_nothing_else() {
    for recording in Recording::all(Wire::Text, "coinbase").await {
        every_price_change_is_published(&recording).await;
    }
}

async fn every_price_change_is_published(recording: &Recording) {
    // One more ticker comes at the end. When it arrives, everything before it has arrived.
    let last = r#"{"type":"ticker","product_id":"THE-END","price":"0"}"#;
    let folder = Folder::empty();
    let longer = folder.path("longer.jsonl");
    let line = json!({ "t": 32, "from": "upstream", "text": last });
    fs::write(&longer, format!("{}{line}\n", fs::read_to_string(&recording.file).unwrap())).unwrap();
    let messages = feeds::messages(&longer);
    let expected = price_changes(&messages);
    assert!((2..messages.len()).contains(&expected.len()), "{} changes", expected.len());

    let (_feed, address) = feeds::play(&longer, "0").await;
    let (proxy, url) = held(address).await;
    let relay = Relay::serve(market(&url)).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(relay.client("/market?channel=prices").await);
    }
    proxy.go_on();
    all_get(clients, expected.into()).await;
    assert_eq!(proxy.connections(), 1);
    assert_eq!(relay.metric("edge_relay_upstream_messages_total", &[]).await, messages.len() as f64);
    assert_eq!(relay.metric("edge_relay_guest_lost_total", &[]).await, 0.0);
}

/// Returns what the tenant must know after a recording, read from it in the simplest way: the latest prices, and the
/// products.
fn known(messages: &[Message]) -> (Value, Value) {
    let (mut prices, mut products) = (serde_json::Map::new(), BTreeSet::new());
    for message in messages {
        let json: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if let Some(product) = json["product_id"].as_str() {
            products.insert(product.to_owned());
            if json["type"] == "ticker" {
                prices.insert(product.to_owned(), json["price"].clone());
            }
        }
    }
    (Value::Object(prices), json!(products))
}

/// Returns what the API and a client's questions answer: prices, products, prices, products.
async fn answers(relay: &Relay, client: &mut Client) -> [Value; 4] {
    let mut answers = Vec::new();
    for path in ["/market/public", "/market/products"] {
        let (status, body) = relay.api_get(path).await;
        assert_eq!(status, 200, "{body}");
        answers.push(serde_json::from_str(&body).unwrap());
    }
    for subject in ["public", "products"] {
        client.send(Message::text(json!({ "get": subject }).to_string())).await;
        answers.push(serde_json::from_str::<Value>(&client.text().await).unwrap()[subject].clone());
    }
    answers.try_into().unwrap()
}

#[tokio::test]
async fn market_answers_with_the_latest_of_coinbase_and_forgets_it_with_the_connection() {
    for (recording, products) in Recording::all(Wire::Text, "coinbase").await.iter().zip([8, 10]) {
        the_latest_is_known_and_forgotten(recording, products).await;
    }
}

/// `count` is the number of products in the recording.
async fn the_latest_is_known_and_forgotten(recording: &Recording, count: usize) {
    let messages = &recording.messages;
    let (prices, products) = known(messages);
    assert_eq!((prices.as_object().unwrap().len(), products.as_array().unwrap().len()), (count, count));
    let (feed, address) = recording.play("0").await;
    let relay = Relay::serve(market(&format!("ws://{address}"))).await;
    // The client follows a channel without publications, so all that it gets are answers.
    let mut client = relay.client("/market?channel=main").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[], messages.len() as f64).await;
    let known = [&prices, &products, &prices, &products];
    until("answers that equal the recording", async || {
        let answers = answers(&relay, &mut client).await;
        if answers.each_ref() == known { Ok(()) } else { Err(json!(answers).to_string()) }
    })
    .await;
    let mut summaries = relay.client("/market?channel=summary").await;
    until("a summary of all", async || {
        let text = summaries.text().await;
        if serde_json::from_str::<Value>(&text).unwrap() == prices { Ok(()) } else { Err(text) }
    })
    .await;

    drop(feed);
    let nothing = [json!({}), json!([]), json!({}), json!([])];
    until("nothing known any more", async || {
        let answers = answers(&relay, &mut client).await;
        if answers == nothing { Ok(()) } else { Err(json!(answers).to_string()) }
    })
    .await;
}
