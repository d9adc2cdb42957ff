//! The demonstration's page: one static file, and the addresses that its script asks for.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::{http_error, serve, shutdown::Stop};

const PAGE: &str = include_str!("page.html");
/// The page may use only the file itself and the relay. An open page outlives its relay, and the next relay has other
/// ports, so the policy cannot name ports.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
    connect-src 'self' ws://127.0.0.1:* http://127.0.0.1:*; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// The sample tenant's own URLs.
#[derive(Serialize)]
pub struct Addresses {
    /// `ws://…`: where its clients connect.
    pub clients: String,
    /// `http://…`: the start of its API's URLs, if it has an API.
    pub api: Option<String>,
}

/// Serves the page and `/addresses` until told to stop.
pub async fn run(listener: TcpListener, addresses: Addresses, stop: Stop) {
    let addresses = serde_json::json!(addresses);
    // Nobody counts the connections of the demonstration's page.
    serve::short_answers(listener, "page", stop, move |request| answer(request, &addresses), |_| ()).await;
}

fn answer(request: &Request<Incoming>, addresses: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => page(),
        (&Method::GET | &Method::HEAD, "/addresses") => http_error::json(StatusCode::OK, addresses.to_string()),
        (_, "/" | "/addresses") => http_error::only_get(),
        _ => http_error::answer(StatusCode::NOT_FOUND, "not_found", "only / and /addresses are here"),
    };
    for (name, value) in [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn page() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(PAGE));
    for (name, value) in [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
