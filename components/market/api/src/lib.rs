//! An API: the latest prices over HTTP, read from the tenant's state where the filter keeps them.
//!
//! `GET /public` answers `{"BTC-USD":"60234.1",…}`, `GET /products` a sorted array of products, and `GET
//! /history?product=BTC-USD&limit=10` the summaries that the job has saved, `[{"at":…,"price":"60234.1"},…]`, newest
//! first. These paths follow the tenant's own. An API is a component of the standard world `wasi:http/proxy`, for which
//! the crate `wasip2` has bindings.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{collections::BTreeMap, io::Write as _};

use edge_relay::tenant::records;
use wasi::keyvalue::{
    batch,
    store::{self, Error},
};
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "imports",
    generate_all,
});

/// Product → latest price, as the filter keeps it.
const PUBLIC: &str = "public";
/// The products that the exchange has named, as keys.
const PRODUCTS: &str = "products";
/// The job's collections have this prefix, then the product.
const SUMMARIES: &str = "summary.";
/// How many summaries an answer has unless the query says so.
const LIMIT: u32 = 100;

pub struct MarketApi;
// Only for hosts: a linker for this machine would refuse the names.
#[cfg(target_arch = "wasm32")]
wasip2::http::proxy::export!(MarketApi);

impl wasip2::exports::http::incoming_handler::Guest for MarketApi {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let (status, json) = match (request.method(), path) {
            (Method::Get | Method::Head, "/public") => found(public()),
            (Method::Get | Method::Head, "/products") => found(products()),
            (Method::Get | Method::Head, "/history") => history(query),
            (_, "/public" | "/products" | "/history") => (405, error("only GET and HEAD")),
            _ => (404, error("here are /public, /products and /history")),
        };
        match response(status, json.len()) {
            Some((response, body)) => {
                ResponseOutparam::set(answer, Ok(response));
                send(body, &json);
            }
            None => ResponseOutparam::set(answer, Err(ErrorCode::InternalError(None))),
        }
    }
}

fn found(json: Result<serde_json::Value, Error>) -> (u16, String) {
    match json {
        Ok(json) => (200, json.to_string()),
        Err(why) => (500, error(&format!("the state cannot be read: {why:?}"))),
    }
}

fn error(message: &str) -> String {
    serde_json::json!({ "error": message }).to_string()
}

/// Every product's latest price.
fn public() -> Result<serde_json::Value, Error> {
    let bucket = store::open(PUBLIC)?;
    let pairs = batch::get_many(&bucket, &keys(&bucket)?)?.into_iter().flatten();
    let prices: BTreeMap<_, _> =
        pairs.map(|(product, price)| (product, String::from_utf8_lossy(&price).into_owned())).collect();
    Ok(serde_json::json!(prices))
}

/// The names of all products.
fn products() -> Result<serde_json::Value, Error> {
    Ok(serde_json::json!(keys(&store::open(PRODUCTS)?)?))
}

/// The summaries that the query asks for, newest first.
fn history(query: &str) -> (u16, String) {
    let (mut product, mut limit) = (None, Some(LIMIT));
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            "product" => product = Some(value),
            "limit" => limit = value.parse().ok(),
            _ => {}
        }
    }
    let (Some(product), Some(limit)) = (product, limit) else {
        return (400, error("ask /history?product=BTC-USD&limit=10"));
    };
    match records::latest(&format!("{SUMMARIES}{product}"), limit) {
        Ok(rows) => {
            let rows: Vec<_> = rows.iter().map(|row| String::from_utf8_lossy(&row.data)).collect();
            (200, format!("[{}]", rows.join(",")))
        }
        Err(records::Error::Invalid(why)) => (400, error(&why)),
        Err(why) => (503, error(&format!("the records cannot be read: {why:?}"))),
    }
}

/// All keys of a bucket. They come sorted, a page at a time.
fn keys(bucket: &store::Bucket) -> Result<Vec<String>, Error> {
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

/// An answer with its head, and its body to be written.
fn response(status: u16, length: usize) -> Option<(OutgoingResponse, OutgoingBody)> {
    let headers = Fields::new();
    headers.append("content-type", b"application/json").ok()?;
    headers.append("content-length", length.to_string().as_bytes()).ok()?;
    // Prices are public: a page of any origin may show them.
    headers.append("access-control-allow-origin", b"*").ok()?;
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).ok()?;
    let body = response.body().ok()?;
    Some((response, body))
}

/// Writes the body and its end, unless nobody takes it: the client is gone, or asked for the head alone.
fn send(body: OutgoingBody, json: &str) {
    let Ok(mut stream) = body.write() else { return };
    let written = stream.write_all(json.as_bytes());
    drop(stream);
    if written.is_ok() {
        // The body is as long as the head says.
        let _ = OutgoingBody::finish(body, None);
    }
}
