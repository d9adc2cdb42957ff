//! A client handler: answers what clients of the tenant `market` ask on their WebSocket.
//!
//! `{"get":"public"}` is answered by `{"public":{"BTC-USD":"60234.1",…}}`, `{"get":"products"}` by
//! `{"products":["BTC-USD",…]}`, both read from the tenant's state where the filter keeps them. Anything else is answered
//! by an error that says what may be asked. Every client is let in, to the channels it asks for.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use edge_relay::tenant::types::Frame;
use exports::edge_relay::tenant::client_handler::{Acceptance, Action, Client, Error, Guest, Kind, Refusal, Request};
use wasi::keyvalue::{batch, store};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "client-component",
    generate_all,
});

/// Product → latest price, as the filter keeps it.
const PUBLIC: &str = "public";
/// The products that the exchange has named, as keys.
const PRODUCTS: &str = "products";

pub struct MarketClient;
// Only for hosts: a linker for this machine would refuse the names.
#[cfg(target_arch = "wasm32")]
export!(MarketClient);

impl Guest for MarketClient {
    fn on_connect(_id: String, _request: Request) -> Result<Acceptance, Refusal> {
        Ok(Acceptance { identity: None, channels: None, subprotocol: None })
    }

    fn on_subscribe(_client: Client, _channel: String, _data: Option<String>) -> Result<(), Refusal> {
        Ok(())
    }

    fn on_message(_client: Client, _kind: Kind, frame: Frame) -> Vec<Action> {
        vec![match answer(&frame) {
            Ok(json) => Action::Reply(Frame::Text(json.to_string())),
            Err((code, message)) => Action::Error(Error { code, message }),
        }]
    }

    fn on_disconnect(_client: Client, _reason: String) {}
}

/// What clients may send.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    get: Subject,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Subject {
    Public,
    Products,
}

/// The answer to a client's message, or an error's code and message: 400 if the client's message is wrong, 500 if this
/// component fails.
fn answer(frame: &Frame) -> Result<Value, (u32, String)> {
    let Frame::Text(text) = frame else {
        return Err((400, "only text is understood".to_owned()));
    };
    let question: Question = serde_json::from_str(text)
        .map_err(|why| (400, format!(r#"ask {{"get":"public"}} or {{"get":"products"}}: {why}"#)))?;
    let answer = match question.get {
        Subject::Public => public().map(|prices| json!({ "public": prices })),
        Subject::Products => {
            store::open(PRODUCTS).and_then(|bucket| keys(&bucket)).map(|all| json!({ "products": all }))
        }
    };
    answer.map_err(|why| (500, format!("the state cannot be read: {why:?}")))
}

/// Every product's latest price.
fn public() -> Result<BTreeMap<String, String>, store::Error> {
    let bucket = store::open(PUBLIC)?;
    let pairs = batch::get_many(&bucket, &keys(&bucket)?)?.into_iter().flatten();
    Ok(pairs.map(|(product, price)| (product, String::from_utf8_lossy(&price).into_owned())).collect())
}

/// All keys of a bucket. They come sorted, a page at a time.
fn keys(bucket: &store::Bucket) -> Result<Vec<String>, store::Error> {
    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let page = bucket.list_keys(cursor)?;
        keys.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(keys);
        }
    }
}
