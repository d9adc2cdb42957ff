//! A filter: turns Coinbase's feed into publications of the tenant `market`.
//!
//! The exchange sends order books, matches and tickers, but clients of the channel `prices` receive only the price of
//! each product, at each change: `{"product":"BTC-USD","price":"60234.1"}`. While the exchange is connected, the
//! tenant's state has the latest prices and the products that any message has named, for its other components.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use edge_relay::tenant::types::{Connection, Frame, Output, Publication};
use exports::edge_relay::tenant::filter::Guest;
use wasi::{
    config::store as settings,
    keyvalue::{
        batch,
        store::{self, Error},
    },
    logging::logging::{Level, log},
};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "filter-component",
    generate_all,
});

const CHANNEL: &str = "prices";
/// The bucket with product → latest price.
const PUBLIC: &str = "public";
/// The bucket with the products as keys.
const PRODUCTS: &str = "products";

/// What has come on the open connection: each product, with its latest price if there was one.
type Seen = BTreeMap<String, Option<String>>;

thread_local! {
    /// An instance serves one upstream, on one thread.
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen::new()) };
}

pub struct MarketFilter;
// Only for hosts: a linker for this machine would refuse the names.
#[cfg(target_arch = "wasm32")]
export!(MarketFilter);

impl Guest for MarketFilter {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        // An instance in another's place subscribes, too: the exchange sends each product's latest ticker again.
        match settings::get("subscribe") {
            Ok(subscribe) => subscribe.into_iter().map(Frame::Text).collect(),
            Err(error) => {
                log(Level::Error, "on-open", &format!("setting `subscribe`: {error:?}"));
                Vec::new()
            }
        }
    }

    fn on_frames(_upstream: String, _connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        SEEN.with_borrow_mut(|seen| {
            let known = seen.len();
            let publications: Vec<_> = frames.iter().filter_map(|frame| publication(frame, seen)).collect();
            let changed = publications.iter().filter_map(|publication| publication.key.as_deref()).collect();
            report("on-frames", keep(seen, changed, seen.len() > known));
            publications.into_iter().map(Output::Publish).collect()
        })
    }

    fn on_close(_upstream: String, _connection: u64, _reason: String) -> Vec<Output> {
        SEEN.with_borrow_mut(BTreeMap::clear);
        report("on-close", forget(PUBLIC).and_then(|()| forget(PRODUCTS)));
        Vec::new()
    }
}

/// Keeps the latest prices of these products in one call. If there are new products, keeps them in a second one.
fn keep(seen: &Seen, changed: BTreeSet<&str>, new: bool) -> Result<(), Error> {
    let price = |product: &str| Some((product.to_owned(), seen.get(product)?.clone()?.into_bytes()));
    let prices: Vec<_> = changed.into_iter().filter_map(price).collect();
    if !prices.is_empty() {
        batch::set_many(&store::open(PUBLIC)?, &prices)?;
    }
    if new {
        let products: Vec<_> = seen.keys().map(|product| (product.clone(), Vec::new())).collect();
        batch::set_many(&store::open(PRODUCTS)?, &products)?;
    }
    Ok(())
}

/// Empties a bucket: without the exchange it would be out of date.
fn forget(bucket: &str) -> Result<(), Error> {
    let bucket = store::open(bucket)?;
    loop {
        let keys = bucket.list_keys(None)?.keys;
        if keys.is_empty() {
            return Ok(());
        }
        batch::delete_many(&bucket, &keys)?;
    }
}

fn report(context: &str, outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        log(Level::Error, context, &format!("the state cannot be changed: {error:?}"));
    }
}

/// The fields of Coinbase's messages that matter here, borrowed from the message; the rest is skipped unparsed.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    product_id: Cow<'a, str>,
    #[serde(borrow, default)]
    price: Cow<'a, str>,
}

/// What clients receive.
#[derive(Serialize)]
struct Price<'a> {
    product: &'a str,
    price: &'a str,
}

/// The publication that a message causes: none, unless it is a ticker with a new price.
fn publication(frame: &Frame, seen: &mut Seen) -> Option<Publication> {
    let Frame::Text(text) = frame else { return None };
    let message: Message = match serde_json::from_str(text) {
        Ok(message) => message,
        Err(error) if error.is_data() => return None, // JSON of another shape.
        Err(error) => {
            log(Level::Warn, "on-frames", &format!("a message is not JSON: {error}"));
            return None;
        }
    };
    let Message { kind, product_id, price } = message;
    if product_id.is_empty() {
        return None;
    }
    if !seen.contains_key(&*product_id) {
        seen.insert(product_id.to_string(), None);
    }
    let last = seen.get_mut(&*product_id)?;
    if kind != "ticker" || price.is_empty() || last.as_deref() == Some(&*price) {
        return None;
    }
    let json = serde_json::to_string(&Price { product: &product_id, price: &price });
    *last = Some(price.into_owned());
    Some(Publication {
        channel: CHANNEL.to_owned(),
        key: Some(product_id.into_owned()),
        data: Frame::Text(json.ok()?),
        remove: false,
        id: None,
        at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticker_with_a_new_price_is_published_and_each_product_is_seen() {
        let mut seen = Seen::new();
        let mut published = |text: &str| publication(&Frame::Text(text.into()), &mut seen).map(|made| made.data);
        let ticker = r#"{"type":"ticker","product_id":"A-B","price":"1.5"}"#;
        assert!(
            matches!(published(ticker), Some(Frame::Text(text)) if text == r#"{"product":"A-B","price":"1.5"}"#),
            "a new price"
        );
        assert!(published(ticker).is_none(), "the same price");
        assert!(published(r#"{"type":"match","product_id":"C-D","price":"2"}"#).is_none(), "no ticker");
        assert_eq!(seen, Seen::from([("A-B".into(), Some("1.5".into())), ("C-D".into(), None)]));
    }
}
