//! The admin listener: `/healthz`, `/readyz` and `/metrics`, for anyone who can reach it.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::net::TcpListener;

use crate::{http_error, metrics::Metrics, routes::Routes, serve, shutdown::Stop, tenant::Tenant};

/// Serves `/healthz`, `/readyz` and `/metrics` until told to stop.
pub async fn run(listener: TcpListener, routes: Arc<Routes>, metrics: Arc<Metrics>, stop: Stop) {
    serve::short_answers(listener, "admin", stop, move |request| answer(request, &routes, &metrics)).await;
}

fn answer(request: &Request<Incoming>, routes: &Routes, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http_error::only_get();
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

/// Shows the upstreams' states and the records that wait for MySQL. The relay is ready because it listens: an upstream
/// that is down is the partner's matter.
fn readiness(tenants: &[Arc<Tenant>]) -> serde_json::Value {
    let by_name: serde_json::Map<_, _> = tenants
        .iter()
        .map(|tenant| {
            let version = tenant.version();
            let upstreams: serde_json::Map<_, _> =
                version.upstreams.iter().map(|upstream| (upstream.name.to_string(), upstream.state().into())).collect();
            let mut state = serde_json::json!({ "upstreams": upstreams });
            // Its folder has something newer than what runs.
            if let (Some(why), Some(state)) = (&*tenant.refused(), state.as_object_mut()) {
                state.insert("refused".into(), why.as_str().into());
            }
            (tenant.name.to_string(), state)
        })
        .collect();
    let mut ready = serde_json::json!({ "status": "ready", "tenants": by_name });
    // All tenants share one store.
    let backlog = tenants.iter().find_map(|tenant| tenant.version().store.as_ref()?.backlog());
    if let (Some((rows, seconds)), Some(ready)) = (backlog, ready.as_object_mut()) {
        ready.insert("records".into(), serde_json::json!({ "waiting": rows, "oldest_seconds": seconds }));
    }
    ready
}
