//! The transport for the SDKs of the Centrifuge protocol. Each test uses the SDK for JavaScript in Node, and some in a
//! page too.

use serde_json::{Value, json};
use support::{guests, javascript::JavaScript, relay::Relay, tenant::Folder};

mod connecting;
mod messages;
mod protocol;
mod resuming;
mod subscribing;

/// The functions that tests call in JavaScript.
const LIBRARY: &str = include_str!("../../clients/centrifuge.js");

/// Runs a module's tests in Node. Each is a function that takes the place where its JavaScript runs.
macro_rules! in_node {
    ($($test:ident),+ $(,)?) => {
        mod in_node {
            $(#[tokio::test]
            async fn $test() {
                let Some(sdk) = crate::entry::centrifuge::node().await else { return };
                super::$test(sdk).await;
            })+
        }
    };
}
use in_node;

/// Runs a module's tests in a browser's page.
macro_rules! in_page {
    ($($test:ident),+ $(,)?) => {
        mod in_page {
            $(#[tokio::test]
            async fn $test() {
                let Some(sdk) = crate::entry::centrifuge::page().await else { return };
                super::$test(sdk).await;
            })+
        }
    };
}
use in_page;

async fn node() -> Option<JavaScript> {
    let mut sdk = JavaScript::node().await?;
    sdk.value(LIBRARY).await;
    Some(sdk)
}

async fn page() -> Option<JavaScript> {
    let mut sdk = JavaScript::browser().await?;
    sdk.value(LIBRARY).await;
    Some(sdk)
}

/// A relay whose tenant `t` has the handler that does what clients tell it.
async fn handled(host_limits: &str) -> Relay {
    Relay::serve(Folder::new(host_limits).handled("t", guests::handler(), "")).await
}

/// The URL where clients of tenant `t` connect.
fn url(relay: &Relay, query: &str) -> String {
    relay.url(&format!("/t/connection/websocket{query}"))
}

/// Connects, and waits until the client is connected.
async fn connect(sdk: &mut JavaScript, url: &str, options: Value) {
    start(sdk, url, options).await;
    sdk.value("client.ready()").await;
}

/// Begins to connect.
async fn start(sdk: &mut JavaScript, url: &str, options: Value) {
    sdk.value(&format!("start({}, {options})", json!(url))).await;
}

/// Has the handler do something. Returns the next message that the client gets.
async fn ask(sdk: &mut JavaScript, command: &str) -> Value {
    let heard = sdk.value("all('message').length").await;
    sdk.value(&format!("client.send({})", json!(command))).await;
    sdk.sees(&format!("all('message').length > {heard}")).await;
    sdk.value(&format!("all('message')[{heard}].data")).await
}

/// Returns these fields of an event's last occurrence.
async fn last(sdk: &mut JavaScript, event: &str, fields: &str) -> Value {
    sdk.value(&format!("(({{ {fields} }}) => [{fields}])(all('{event}').at(-1))")).await
}

#[tokio::test]
async fn the_readmes_snippet_prints_what_is_published() {
    use support::{client::Client, partner::Partner, script::Script};

    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("market", &partner.url(), guests::market("filter"), "");
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let snippet = crate::docs::readme::block("js", "Centrifuge").replace("HOST:8080", &relay.clients.to_string());
    let Some(mut script) = Script::node(&snippet, &[]) else { return };
    let mut other = Client::connect(&relay.url("/market?channel=prices")).await;
    for price in 1..=20 {
        let ticker = json!({ "type": "ticker", "product_id": "BTC-USD", "price": price.to_string() });
        peer.text(ticker.to_string()).await;
        other.text().await;
        let printed = script.said().await;
        assert!(printed.starts_with(&format!("{price} ")) && printed.contains(&format!("'{price}'")), "{printed}");
    }
}
