//! A filter: what the tenant `market` makes of Coinbase's feed.
//!
//! Of all that the exchange sends (order books, matches, tickers), clients of the channel `prices` receive the price
//! of each product, at each change: `{"product":"BTC-USD","price":"60234.1"}`. The latest prices also go into the tenant's
//! state, for its other components: product → price, while the exchange is connected.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use edge_relay::tenant::types::{Frame, Publication};
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
/// The part of the tenant's state with the latest prices.
const BUCKET: &str = "public";

thread_local! {
    /// The last price of each product on the open connection. An instance serves one upstream, on one thread.
    static LAST_PRICES: RefCell<BTreeMap<String, String>> = const { RefCell::new(BTreeMap::new()) };
}

struct MarketFilter;
export!(MarketFilter);

impl Guest for MarketFilter {
    fn on_open(_upstream: String) -> Vec<Frame> {
        match settings::get("subscribe") {
            Ok(subscribe) => subscribe.into_iter().map(Frame::Text).collect(),
            Err(error) => {
                log(Level::Error, "on-open", &format!("setting `subscribe`: {error:?}"));
                Vec::new()
            }
        }
    }

    fn on_frames(_upstream: String, frames: Vec<Frame>) -> Vec<Publication> {
        LAST_PRICES.with_borrow_mut(|last| {
            let publications: Vec<_> = frames.iter().filter_map(|frame| publication(frame, last)).collect();
            let changed: BTreeSet<_> = publications.iter().filter_map(|publication| publication.key.clone()).collect();
            if !changed.is_empty() {
                report("on-frames", keep(changed, last));
            }
            publications
        })
    }

    fn on_close(_upstream: String, _reason: String) -> Vec<Publication> {
        LAST_PRICES.with_borrow_mut(BTreeMap::clear);
        report("on-close", forget());
        Vec::new()
    }
}

/// Keeps the latest prices of these products, in one call.
fn keep(products: BTreeSet<String>, last: &BTreeMap<String, String>) -> Result<(), Error> {
    let price = |product: String| {
        let price = last.get(&product)?.clone().into_bytes();
        Some((product, price))
    };
    batch::set_many(&store::open(BUCKET)?, &products.into_iter().filter_map(price).collect::<Vec<_>>())
}

/// Takes all prices out of the state: without the exchange they are the latest no more.
fn forget() -> Result<(), Error> {
    let bucket = store::open(BUCKET)?;
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
        log(Level::Error, context, &format!("state `{BUCKET}`: {error:?}"));
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

/// What a message changes for clients: nothing, unless it is a ticker with a new price.
fn publication(frame: &Frame, last: &mut BTreeMap<String, String>) -> Option<Publication> {
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
    if kind != "ticker" || product_id.is_empty() || price.is_empty() {
        return None;
    }
    if last.get(&*product_id).is_some_and(|last| *last == price) {
        return None;
    }
    let json = serde_json::to_string(&Price { product: &product_id, price: &price });
    last.insert(product_id.to_string(), price.into_owned());
    Some(Publication {
        channel: CHANNEL.to_owned(),
        key: Some(product_id.into_owned()),
        data: Frame::Text(json.ok()?),
        remove: false,
    })
}
