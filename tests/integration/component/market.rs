//! The sample tenant in each of its languages: all of them do the same.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use support::{
    client::Client,
    guests,
    http::Http,
    languages::{self, Language},
    partner::{Partner, Peer},
    place,
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::Message;

/// The tenant's folder, with its components built.
struct Sample {
    folder: PathBuf,
    components: Vec<(String, PathBuf)>,
}

#[tokio::test]
async fn it_is_as_it_says_in_rust() {
    let component = |role: &str| (format!("{role}.wasm"), guests::market(role).to_owned());
    let components = guests::MARKET.iter().map(|role| component(role)).collect();
    is_as_it_says(Sample { folder: guests::market_folder(), components }).await;
}

#[tokio::test]
async fn it_is_as_it_says_in_javascript() {
    in_language(Language::JavaScript, "components/javascript").await;
}

#[tokio::test]
async fn it_is_as_it_says_in_python() {
    in_language(Language::Python, "components/python").await;
}

async fn in_language(language: Language, folder: &str) {
    let Some(component) = languages::market(language) else { return };
    let components = vec![("market.wasm".to_owned(), component)];
    is_as_it_says(Sample { folder: place::root(folder), components }).await;
}

/// Serves the sample with another partner and a shorter time between summaries. A second tenant `full` has little room
/// for state.
async fn serve(sample: &Sample, partner: &Partner, full: &Partner) -> Relay {
    let folder = Folder::new("");
    let manifest = fs::read_to_string(sample.folder.join("tenant.toml")).unwrap();
    let change = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from} is in the sample's manifest");
        text.replace(from, to)
    };
    let manifest = change(&manifest, "every = \"300s\"", "every = \"100ms\"");
    let url = "wss://ws-feed.exchange.coinbase.com";
    folder.write("tenants/market/tenant.toml", change(&manifest, url, &partner.url()));
    let named = change(&change(&manifest, url, &full.url()), "name = \"market\"", "name = \"full\"");
    folder.write("tenants/full/tenant.toml", named + "\n[limits]\nstate = \"4KiB\"\n");
    for (name, component) in &sample.components {
        for tenant in ["market", "full"] {
            folder.copy(component, &format!("tenants/{tenant}/{name}"));
        }
    }
    Relay::serve(folder).await
}

async fn is_as_it_says(sample: Sample) {
    let (mut partner, mut full) = (Partner::start().await, Partner::start().await);
    let relay = serve(&sample, &partner, &full).await;
    let mut prices = relay.client("/market?channel=prices").await;
    let mut summaries = relay.client("/market?channel=summary").await;
    let mut asking = relay.client("/market?channel=main").await;
    asks_nothing_it_may_not(&relay, &mut asking).await;
    assert_eq!(ask(&mut asking, r#"{"get":"products"}"#).await, json!({ "products": [] }));

    let mut peer = partner.accept().await;
    publishes_what_changes(&mut peer, &mut prices).await;
    let snapshot = Http::connect(relay.clients).await.get("/market/channels/prices/snapshot").await.json();
    let latest =
        |entry: &Value| (entry["key"].as_str().unwrap().to_owned(), entry["data"].as_str().unwrap().to_owned());
    let snapshot: Vec<_> = snapshot["publications"].as_array().unwrap().iter().map(latest).collect();
    let price = |product: &str, price: &str| format!(r#"{{"product":"{product}","price":"{price}"}}"#);
    let wanted = [("C-D", "1.20"), ("A-B", "1.2"), ("Ü-€", "1")].map(|(key, last)| (key.to_owned(), price(key, last)));
    assert_eq!(snapshot, wanted);

    let known = json!({ "A-B": "1.2", "C-D": "1.20", "Ü-€": "1" });
    assert_eq!(ask(&mut asking, r#"{"get":"public"}"#).await, json!({ "public": known }));
    assert_eq!(ask(&mut asking, r#" {"get": "products"} "#).await, json!({ "products": PRODUCTS }));
    answers_http(&relay, &known).await;
    saves_before_it_broadcasts(&relay, &mut peer, &mut summaries).await;
    many_products_fit(&relay, &mut peer).await;

    // What was known from the lost connection is forgotten. What the next one brings is not.
    drop(peer);
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, SUBSCRIBE);
    assert_eq!(ask(&mut asking, r#"{"get":"products"}"#).await, json!({ "products": [] }));
    assert_eq!(relay.api_get("/market/public").await, (200, "{}".to_owned()));
    peer.text(ticker("C-D", "4")).await;
    summary_is(&mut summaries, json!({ "C-D": "4" })).await;
    prices_go_out_all_the_same(&relay, &mut full).await;
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[("blame", "guest_broke")]).await, 0.0);
}

/// What the sample's filter sends first, as the manifests say.
const SUBSCRIBE: &str = r#"{"type":"subscribe","product_ids":["BTC-USD","ETH-USD"],"channels":["ticker"]}"#;
/// The products that `publishes_what_changes` uses.
const PRODUCTS: [&str; 4] = ["A-B", "C-D", "E-F", "Ü-€"];

fn ticker(product: &str, price: &str) -> String {
    json!({ "type": "ticker", "product_id": product, "price": price, "x": [1] }).to_string()
}

/// The filter subscribes first. Then it publishes the prices that a burst changes, whatever else the burst has.
async fn publishes_what_changes(peer: &mut Peer, prices: &mut Client) {
    assert_eq!(peer.next_text().await, SUBSCRIBE);
    let texts = [
        &ticker("A-B", "1.20"),
        &ticker("A-B", "1.20"),
        "not JSON",
        "",
        "null",
        "7",
        r#"["ticker"]"#,
        r#"{"type":"ticker","price":"5"}"#,
        r#"{"type":"ticker","product_id":"","price":"5"}"#,
        r#"{"type":"ticker","product_id":["A-B"],"price":"5"}"#,
        r#"{"type":"ticker","product_id":"A-B"}"#,
        r#"{"type":"match","product_id":"A-B","price":"8"}"#,
        r#"{"type":"match","product_id":"E-F","price":"8"}"#,
        &ticker("C-D", "1.20"),
        &ticker("A-B", "1.2"),
        &ticker("Ü-€", "1"),
    ];
    let binary = Message::binary(ticker("A-B", "9"));
    peer.burst(texts.map(Message::text).into_iter().chain([binary])).await;
    for (product, price) in [("A-B", "1.20"), ("C-D", "1.20"), ("A-B", "1.2"), ("Ü-€", "1")] {
        assert_eq!(prices.text().await, format!(r#"{{"product":"{product}","price":"{price}"}}"#));
    }
    prices.has_no_more().await;
}

async fn ask(client: &mut Client, question: &str) -> Value {
    client.send(Message::text(question)).await;
    serde_json::from_str(&client.text().await).unwrap()
}

/// The client handler answers an unknown question with an error that names the known ones.
async fn asks_nothing_it_may_not(relay: &Relay, client: &mut Client) {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let wrong =
        ["", "{", "null", "[]", "7", r#"{"get":"all"}"#, r#"{"get":"public","x":1}"#, r#"{"GET":"public"}"#, &deep];
    for text in wrong {
        let answer = ask(client, text).await;
        assert_eq!(answer["error"]["code"], 400, "{text:.80}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(r#"{"get":"public"}"#), "{answer}");
    }
    client.send(Message::binary(vec![0xFF])).await;
    assert_eq!(client.text().await, r#"{"error":{"code":400,"message":"only text is understood"}}"#);
    let said_no = [("role", "client"), ("blame", "guest_said_no"), ("reason", "error")];
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &said_no).await, wrong.len() as f64 + 1.0);
}

/// Checks the API without its history.
async fn answers_http(relay: &Relay, known: &Value) {
    let mut http = relay.http().await;
    for (path, wanted) in
        [("/market/public", known), ("/market/products", &json!(PRODUCTS)), ("/market/public?x=1", known)]
    {
        let answer = http.get(path).await;
        assert_eq!((answer.status(), &answer.json()), (200, wanted), "{path}");
        let header = |name| answer.head.header(name);
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("content-length"), Some(answer.body.len().to_string().as_str()));
        assert_eq!(header("access-control-allow-origin"), Some("*"));
    }
    http.request("HEAD", "/market/products").await;
    let head = http.head().await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    for (method, path, status, error) in [
        ("GET", "/market/nowhere", 404, "here are /public, /products and /history"),
        ("GET", "/market/", 404, "here are /public, /products and /history"),
        ("POST", "/market/nowhere", 404, "here are /public, /products and /history"),
        ("POST", "/market/public", 405, "only GET and HEAD"),
        ("DELETE", "/market/history?product=A-B", 405, "only GET and HEAD"),
        ("GET", "/market/history", 400, "ask /history?product=BTC-USD&limit=10"),
        ("GET", "/market/history?limit=1", 400, "ask /history?product=BTC-USD&limit=10"),
        ("GET", "/market/history?product=A-B&limit=x", 400, "ask /history?product=BTC-USD&limit=10"),
        ("GET", "/market/history?product=A-B&limit=-1", 400, "ask /history?product=BTC-USD&limit=10"),
        ("GET", "/market/history?product=A-B&limit=4294967296", 400, "ask /history?product=BTC-USD&limit=10"),
    ] {
        let mut http = relay.http().await;
        http.request(method, path).await;
        let answer = http.answer().await;
        assert_eq!((answer.status(), answer.json()), (status, json!({ "error": error })), "{method} {path}");
    }
    let long = format!("/market/history?product={}", "x".repeat(200));
    let answer = relay.http().await.get(&long).await;
    assert_eq!(answer.status(), 400, "no collection has such a name: {}", answer.body);
}

/// Waits for a summary with these prices. Earlier prices may come first.
async fn summary_is(summaries: &mut Client, wanted: Value) {
    until(format!("a summary of {wanted}"), async || {
        let text = summaries.text().await;
        if serde_json::from_str::<Value>(&text).unwrap() == wanted { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Checks the job, and the API's history of what the job has saved.
async fn saves_before_it_broadcasts(relay: &Relay, peer: &mut Peer, summaries: &mut Client) {
    let history = async |query: &str| -> Vec<Value> {
        let (status, body) = relay.api_get(&format!("/market/history?{query}")).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    for price in ["1.3", "1.4"] {
        peer.text(ticker("A-B", price)).await;
        summary_is(summaries, json!({ "A-B": price, "C-D": "1.20", "Ü-€": "1" })).await;
        // The job saves before it publishes: a client that gets the summary finds the rows.
        assert_eq!(history("product=A-B&limit=1").await[0]["price"], price);
    }
    let all = history("product=A-B&limit=1000").await;
    // The newest comes first, for each product.
    assert!(all.is_sorted_by(|one, next| one["at"].as_u64() > next["at"].as_u64()), "{all:?}");
    assert!(all.len() >= 2 && all.iter().any(|row| row["price"] == "1.3"), "{all:?}");
    assert_eq!(history("product=A-B&limit=2").await.len(), 2);
    assert_eq!(history("product=C-D&limit=1").await[0]["price"], "1.20");
    assert_eq!(history("product=E-F").await, [] as [Value; 0]);
}

/// More products than a bucket lists at once, and an answer whose body comes in several pieces.
async fn many_products_fit(relay: &Relay, peer: &mut Peer) {
    const MANY: usize = 2_500;
    peer.burst((0..MANY).map(|nth| Message::text(ticker(&format!("many-{nth:04}"), "1")))).await;
    until("all products", async || {
        let (status, body) = relay.api_get("/market/public").await;
        let all: Value = serde_json::from_str(&body).unwrap();
        let count = all.as_object().unwrap().len();
        if status == 200 && count == MANY + 3 { Ok(()) } else { Err(format!("{status}, {count} products")) }
    })
    .await;
}

/// Prices that cannot be kept are published nevertheless.
async fn prices_go_out_all_the_same(relay: &Relay, partner: &mut Partner) {
    let mut prices = relay.client("/full?channel=prices").await;
    let mut peer = partner.accept().await;
    let long = "1".repeat(5_000);
    peer.text(ticker("A-B", &long)).await;
    assert_eq!(prices.text().await, format!(r#"{{"product":"A-B","price":"{long}"}}"#));
    relay.logged(&["ERROR", "tenant.name=full", "the state cannot be changed"]).await;
}
