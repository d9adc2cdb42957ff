//! The admin listener: `/readyz`, `/metrics` and, as on every listener, `/healthz`, for anyone who can reach it.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::net::TcpListener;

use crate::{
    http_error,
    metrics::Metrics,
    routes::Routes,
    serve,
    shutdown::Stop,
    tenant::{Refusals, Tenant, TenantRefused},
    upstream::{Handle, Status, millis_until},
    usage::Recent,
};

/// How many tenants are shown that use most of something.
const TOP: usize = 5;
/// Bytes of reasons for refusals that are shown whole, all together, and bytes of each of the others.
const REASONS: usize = 256 << 10;
const SHORT_REASON: usize = 100;

/// Serves `/healthz`, `/readyz` and `/metrics` until told to stop.
pub async fn run(
    listener: TcpListener,
    routes: Arc<Routes>,
    refusals: Arc<Refusals>,
    metrics: Arc<Metrics>,
    leaving: Stop,
    stop: Stop,
) {
    let counted = Arc::clone(&metrics);
    let closed = move |reason| counted.admin_refused(reason);
    let answer = move |request: &_| answer(request, &routes, &refusals, &metrics, &leaving);
    serve::short_answers(listener, "admin", stop, answer, closed).await;
}

fn answer(
    request: &Request<Incoming>,
    routes: &Routes,
    refusals: &Refusals,
    metrics: &Metrics,
    leaving: &Stop,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http_error::only_get();
    }
    match request.uri().path() {
        "/readyz" if leaving.is_set() => {
            let body = serde_json::json!({ "status": "leaving" });
            http_error::json(StatusCode::SERVICE_UNAVAILABLE, body.to_string())
        }
        "/readyz" => {
            let (tenants, is_verbose) = (routes.tenants(), request.uri().query() == Some("verbose"));
            let (status, mut ready) = readiness(&tenants, &refusals.all());
            if let (true, Some(ready)) = (is_verbose, ready.as_object_mut()) {
                ready.insert("top".into(), top(&tenants));
            }
            http_error::json(status, ready.to_string())
        }
        "/metrics" => match metrics.encode() {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                http_error::not_kept(response.headers_mut());
                response
            }
            Err(error) => {
                http_error::answer(StatusCode::INTERNAL_SERVER_ERROR, "metrics", &format!("cannot be encoded: {error}"))
            }
        },
        _ => http_error::answer(StatusCode::NOT_FOUND, "not_found", "here are /healthz, /readyz and /metrics"),
    }
}

/// Shows the upstreams' states, the refused tenants, and the records that wait for MySQL. The relay is ready because it
/// listens: an upstream that is down is the partner's matter, and what a tenant has wrong is that tenant's. It is not
/// ready while there are tenants and none of them is served.
fn readiness(tenants: &[Arc<Tenant>], refused: &[TenantRefused]) -> (StatusCode, serde_json::Value) {
    let newer: HashMap<&str, &TenantRefused> =
        refused.iter().filter(|refused| refused.runs).map(|refused| (&*refused.name, refused)).collect();
    let mut left = REASONS;
    let by_name: serde_json::Map<_, _> = tenants
        .iter()
        .map(|tenant| {
            let version = tenant.version();
            let upstreams: serde_json::Map<_, _> =
                version.upstreams.iter().map(|upstream| (upstream.name.to_string(), state(upstream))).collect();
            let mut state = serde_json::json!({ "upstreams": upstreams });
            // Its folder has something newer than what runs.
            if let (Some(newer), Some(state)) = (newer.get(&*tenant.name), state.as_object_mut()) {
                state.insert("refused".into(), shown(&newer.why, &mut left));
            }
            (tenant.name.to_string(), state)
        })
        .collect();
    let out_of_service = refused.iter().filter(|refused| !refused.runs);
    let out_of_service: serde_json::Map<_, _> =
        out_of_service.map(|refused| (refused.name.to_string(), shown(&refused.why, &mut left))).collect();
    let (status, word) = match tenants.is_empty() && !out_of_service.is_empty() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        false => (StatusCode::OK, "ready"),
    };
    let mut ready = serde_json::json!({ "status": word, "tenants": by_name, "refused": out_of_service });
    // All tenants share one store.
    let backlog = tenants.iter().find_map(|tenant| tenant.version().store.as_ref()?.backlog());
    if let (Some((rows, seconds)), Some(ready)) = (backlog, ready.as_object_mut()) {
        ready.insert("records".into(), serde_json::json!({ "waiting": rows, "oldest_seconds": seconds }));
    }
    (status, ready)
}

/// A reason, cut if `left` bytes are not enough for it. The log has it whole.
fn shown(why: &str, left: &mut usize) -> serde_json::Value {
    match left.checked_sub(why.len()) {
        Some(rest) => {
            *left = rest;
            why.into()
        }
        None if why.len() <= SHORT_REASON => why.into(),
        None => format!("{}…", why.get(..why.floor_char_boundary(SHORT_REASON)).unwrap_or_default()).into(),
    }
}

/// The tenants that use most of what all share.
fn top(tenants: &[Arc<Tenant>]) -> serde_json::Value {
    let recent: Vec<_> = tenants.iter().map(|tenant| (tenant, tenant.usage.recent())).collect();
    let most = |figure: &dyn Fn(&Tenant, &Recent) -> f64| -> serde_json::Value {
        let mut all: Vec<_> = recent.iter().map(|(tenant, recent)| (figure(tenant, recent), &tenant.name)).collect();
        all.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let shown = all.iter().take(TOP).filter(|(figure, _)| *figure > 0.0);
        shown.map(|(figure, name)| serde_json::json!({ "tenant": &***name, "uses": rounded(*figure) })).collect()
    };
    serde_json::json!({
        "processors": most(&|_, recent| recent.processors),
        "memory_bytes": most(&|tenant, _| tenant.account.used() as f64),
        "bytes_per_second": most(&|_, recent| recent.bytes_per_second),
    })
}

/// Whole numbers as such, and others to the thousandth.
fn rounded(figure: f64) -> serde_json::Value {
    let thousandths = (figure * 1000.0).round() / 1000.0;
    if figure < 100.0 { thousandths.into() } else { serde_json::Value::from(figure.round() as u64) }
}

/// An upstream's state; why, if there is something to say; and in how many milliseconds it is tried again.
fn state(upstream: &Handle) -> serde_json::Value {
    let Status { state, reason, until } = upstream.status_here();
    let mut shown = serde_json::Map::from_iter([("state".to_owned(), state.name().into())]);
    shown.extend(reason.map(|reason| ("reason".to_owned(), reason.into())));
    shown.extend(until.map(|until| ("until".to_owned(), millis_until(until).into())));
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_reasons_are_cut_and_few_are_not() {
        let refused = |nth: usize| TenantRefused {
            name: format!("t{nth}").into(),
            runs: false,
            why: format!("{nth} {}", "é".repeat(8 << 10)),
        };
        let page = |count: usize| {
            let refused: Vec<_> = (0..count).map(refused).collect();
            readiness(&[], &refused).1
        };
        assert_eq!(page(3)["refused"]["t2"].as_str().map(str::len), Some(2 + (16 << 10)));
        let many = page(5_000);
        assert!(many.to_string().len() < REASONS + 5_000 * 150);
        let cut = many["refused"].as_object().unwrap().values().filter(|why| why.as_str().unwrap().ends_with('…'));
        assert!(cut.count() > 4_900);
        assert_eq!(rounded(12.3456), serde_json::json!(12.346));
        assert_eq!(rounded(1234.5), serde_json::json!(1235));
    }
}
