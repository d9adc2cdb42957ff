//! The admin listener: is it alive, is it ready, what has it counted.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{http_error, metrics::Metrics, routes::Routes, shutdown::Stop, tenant::Tenant};

/// Connections at once: probes and scrapers are few.
const MAX_CONNECTIONS: usize = 64;
/// For a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `/healthz`, `/readyz` and `/metrics` until told to stop.
pub async fn run(listener: TcpListener, routes: Arc<Routes>, metrics: Arc<Metrics>, mut stop: Stop) {
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
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (routes, metrics) = (Arc::clone(&routes), Arc::clone(&metrics));
        let service = service_fn(move |request| {
            let response = answer(&request, &routes, &metrics);
            async { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(socket), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection failed");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, routes: &Routes, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = http_error::answer(StatusCode::METHOD_NOT_ALLOWED, "method", "only GET and HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => http_error::json(StatusCode::OK, serde_json::json!({ "status": "ok" }).to_string()),
        "/readyz" => http_error::json(StatusCode::OK, readiness(&routes.tenants()).to_string()),
        "/metrics" => match metrics.encode() {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                response
            }
            Err(error) => {
                http_error::answer(StatusCode::INTERNAL_SERVER_ERROR, "metrics", &format!("cannot be encoded: {error}"))
            }
        },
        _ => http_error::answer(StatusCode::NOT_FOUND, "not_found", "here are /healthz, /readyz and /metrics"),
    }
}

/// The relay listens, so it is ready; an upstream that is down is the partner's matter and shown, as are records that
/// wait for MySQL.
fn readiness(tenants: &[Arc<Tenant>]) -> serde_json::Value {
    let by_name: serde_json::Map<_, _> = tenants
        .iter()
        .map(|tenant| {
            let version = tenant.version();
            let upstreams: serde_json::Map<_, _> =
                version.upstreams.iter().map(|upstream| (upstream.name.to_string(), upstream.state().into())).collect();
            let mut state = serde_json::json!({ "upstreams": upstreams });
            // What runs is not what its folder has now.
            if let (Some(why), Some(state)) = (&*tenant.refused(), state.as_object_mut()) {
                state.insert("refused".into(), why.as_str().into());
            }
            (tenant.name.to_string(), state)
        })
        .collect();
    let mut ready = serde_json::json!({ "status": "ready", "tenants": by_name });
    // One store for all.
    let backlog = tenants.iter().find_map(|tenant| tenant.version().store.as_ref()?.backlog());
    if let (Some((rows, seconds)), Some(ready)) = (backlog, ready.as_object_mut()) {
        ready.insert("records".into(), serde_json::json!({ "waiting": rows, "oldest_seconds": seconds }));
    }
    ready
}
