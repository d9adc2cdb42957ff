//! The sample tenant as a whole, beside what `filter` and `real_input` show of its parts.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{client::Client, guests, partner::Partner, relay::Relay, tenant::Folder, until};

const TENANT: &str = "[components]\nfilter = \"filter.wasm\"\njob = \"job.wasm\"\n\
    [[schedule]]\nname = \"summary\"\nevery = \"100ms\"";

fn ticker(product: &str, price: &str) -> String {
    json!({ "type": "ticker", "product_id": product, "price": price }).to_string()
}

/// Waits for a summary of these prices; others are of earlier ones.
async fn summary_is(summaries: &mut Client, wanted: Value) {
    until(format!("a summary of {wanted}"), async || {
        let text = summaries.text().await;
        if serde_json::from_str::<Value>(&text).unwrap() == wanted { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn a_summary_has_the_latest_prices_of_the_open_connection() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), TENANT);
    folder.copy(guests::market("filter"), "tenants/t/filter.wasm");
    folder.copy(guests::market("job"), "tenants/t/job.wasm");
    let relay = Relay::serve(folder).await;
    let mut summaries = relay.client("/t?channel=summary").await;
    let mut peer = partner.accept().await;
    for (product, price) in [("BTC-USD", "1.2"), ("ETH-USD", "3"), ("BTC-USD", "1.3")] {
        peer.text(ticker(product, price)).await;
    }
    summary_is(&mut summaries, json!({ "BTC-USD": "1.3", "ETH-USD": "3" })).await;
    // What was known of the lost connection is forgotten, not what the next one brings.
    drop(peer);
    let mut peer = partner.accept().await;
    peer.text(ticker("ETH-USD", "4")).await;
    summary_is(&mut summaries, json!({ "ETH-USD": "4" })).await;
}

#[tokio::test]
async fn a_summary_that_was_broadcast_is_in_the_history() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), &TENANT.replace("job = ", "api = \"api.wasm\"\njob = "));
    for role in ["filter", "job", "api"] {
        folder.copy(guests::market(role), &format!("tenants/t/{role}.wasm"));
    }
    let relay = Relay::serve(folder).await;
    let mut summaries = relay.client("/t?channel=summary").await;
    let mut peer = partner.accept().await;
    let history = async |query: &str| -> Vec<Value> {
        let (status, body) = relay.api_get(&format!("/t/history?{query}")).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    for price in ["1.2", "1.3"] {
        peer.text(ticker("BTC-USD", price)).await;
        peer.text(ticker("ETH-USD", "3")).await;
        summary_is(&mut summaries, json!({ "BTC-USD": price, "ETH-USD": "3" })).await;
        // Saved first: whoever has heard of it finds it.
        assert_eq!(history("product=BTC-USD&limit=1").await[0]["price"], price);
    }
    let all = history("product=BTC-USD&limit=1000").await;
    // Newest first, each product by itself.
    assert!(all.is_sorted_by(|one, next| one["at"].as_u64() > next["at"].as_u64()), "{all:?}");
    assert!(all.len() >= 2 && all.last().unwrap()["price"] == "1.2", "{all:?}");
    assert_eq!(history("product=BTC-USD&limit=2").await.len(), 2);
    assert_eq!(history("product=ETH-USD&limit=1").await[0]["price"], "3");
    assert_eq!(history("product=NONE").await, [] as [Value; 0]);
    assert_eq!(relay.api_get("/t/history").await.0, 400);
}

#[tokio::test]
async fn a_question_that_is_none_is_answered_by_an_error() {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\n[components]\nclient = \"client.wasm\"");
    folder.copy(guests::market("client"), "tenants/t/client.wasm");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let wrong = ["", "{", "null", "[]", r#"{"get":"all"}"#, r#"{"get":"public","x":1}"#, r#"{"GET":"public"}"#, &deep];
    for text in wrong {
        client.send(Message::text(text)).await;
        let answer: Value = serde_json::from_str(&client.text().await).unwrap();
        assert_eq!(answer["error"]["code"], 400, "{text:.80}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(r#"{"get":"public"}"#), "{answer}");
    }
    client.send(Message::binary(vec![0xFF])).await;
    assert_eq!(client.text().await, r#"{"error":{"code":400,"message":"only text is understood"}}"#);
    client.send(Message::text(r#"{"get":"products"}"#)).await;
    assert_eq!(client.text().await, r#"{"products":[]}"#);
    let said_no = [("role", "client"), ("blame", "guest_said_no"), ("reason", "error")];
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &said_no).await, wrong.len() as f64 + 1.0);
}
