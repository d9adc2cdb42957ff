//! The sample tenant as a whole, beside what `filter` and `real_input` show of its parts.

use serde_json::{Value, json};

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
