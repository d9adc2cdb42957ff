//! A job: saves all prices at the times of the tenant's schedule, then broadcasts them on the channel `summary`.
//!
//! The filter keeps the latest price of each product in the tenant's state, where the job reads it. Each product has a
//! collection of records, `summary.PRODUCT`, which outlives the host. The API serves it.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::collections::BTreeMap;

use edge_relay::tenant::{
    records,
    types::{Frame, Publication},
};
use exports::edge_relay::tenant::job::Guest;
use wasi::{
    keyvalue::{
        batch,
        store::{self, Error},
    },
    logging::logging::{Level, log},
};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "job-component",
    generate_all,
});

const CHANNEL: &str = "summary";
/// Product → latest price, as the filter keeps it.
const BUCKET: &str = "public";

/// The collections have this prefix, then the product.
const COLLECTION: &str = "summary.";

pub struct MarketJob;
// Only for hosts: a linker for this machine would refuse the names.
#[cfg(target_arch = "wasm32")]
export!(MarketJob);

impl Guest for MarketJob {
    fn on_schedule(name: String, scheduled_at: u64) -> Vec<Publication> {
        let prices = match prices() {
            Ok(prices) if prices.is_empty() => return Vec::new(),
            Ok(prices) => prices,
            Err(error) => {
                log(Level::Error, &name, &format!("the state cannot be read: {error:?}"));
                return Vec::new();
            }
        };
        for (product, price) in &prices {
            let row = serde_json::json!({ "at": scheduled_at, "price": price }).to_string();
            if let Err(error) = records::append(&format!("{COLLECTION}{product}"), row.as_bytes()) {
                log(Level::Error, &name, &format!("the summary of {product} is not saved: {error:?}"));
            }
        }
        serde_json::to_string(&prices).into_iter().map(summary).collect()
    }
}

/// Every product's latest price.
fn prices() -> Result<BTreeMap<String, String>, Error> {
    let bucket = store::open(BUCKET)?;
    let (mut prices, mut cursor) = (BTreeMap::new(), None);
    loop {
        let page = bucket.list_keys(cursor)?;
        let values = batch::get_many(&bucket, &page.keys)?.into_iter().flatten();
        prices.extend(values.map(|(product, price)| (product, String::from_utf8_lossy(&price).into_owned())));
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(prices);
        }
    }
}

fn summary(json: String) -> Publication {
    Publication { channel: CHANNEL.to_owned(), key: None, data: Frame::Text(json), remove: false, id: None, at: None }
}
