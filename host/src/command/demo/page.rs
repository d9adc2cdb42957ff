//! The demonstration's page: one static file, and the addresses that its script asks for.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{http_error, shutdown::Stop};

const PAGE: &str = include_str!("page.html");
/// The page may use only the file itself and the relay. An open page outlives its relay, and the next relay has other
/// ports, so the policy cannot name ports.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
    connect-src 'self' ws://127.0.0.1:* http://127.0.0.1:*; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
/// Most connections at once: a few browsers, each with a few.
const MAX_CONNECTIONS: usize = 64;
/// Longest wait for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The sample tenant's own URLs.
#[derive(Serialize)]
pub struct Addresses {
    /// `ws://…`: where its clients connect.
    pub clients: String,
    /// `http://…`: the start of its API's URLs, if it has an API.
    pub api: Option<String>,
}

/// Serves the page and `/addresses` until told to stop.
pub async fn run(listener: TcpListener, addresses: Addresses, mut stop: Stop) {
    let addresses = serde_json::json!(addresses);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.wait() => return,
        };
        while connections.try_join_next().is_some() {}
        let socket = match accepted {
            Ok((socket, _)) if connections.len() < MAX_CONNECTIONS => socket,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection for the page could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let addresses = addresses.clone();
        let service = service_fn(move |request| {
            let response = answer(&request, &addresses);
            async { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection for the page failed");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, addresses: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => page(),
        (&Method::GET | &Method::HEAD, "/addresses") => http_error::json(StatusCode::OK, addresses.to_string()),
        (_, "/" | "/addresses") => {
            let mut response = http_error::answer(StatusCode::METHOD_NOT_ALLOWED, "method", "only GET and HEAD");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
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
