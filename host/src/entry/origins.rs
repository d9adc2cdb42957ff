//! Which web pages may be clients: the header `Origin` of their requests (RFC 6455 section 10.2), and CORS (Fetch
//! standard, section 3.2), by which a browser asks what they may read.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue, ORIGIN, VARY,
    },
};

use crate::{entry::refusal::Refusal, http_error, tenant::Tenant};

/// Refuses a page of an origin that the tenant does not list. What is not sent by a page has no origin, and is let in.
/// A tenant that lists none lets everyone in.
pub fn check(tenant: &Tenant, request: &HeaderMap) -> Result<(), Refusal> {
    let version = tenant.version();
    if version.origins.is_empty() {
        return Ok(());
    }
    let is_listed = |origin: &HeaderValue| {
        version.origins.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes())
    };
    // A request has one. Where it has more, all must be listed.
    if request.get_all(ORIGIN).iter().all(is_listed) {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin", "this tenant does not take clients of this page's origin"))
}

/// The CORS headers of an answer to a request.
pub fn cors(tenant: &Tenant, request: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let origins = &tenant.version().origins;
    if origins.is_empty() {
        return headers;
    }
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = request.get(ORIGIN) else { return headers };
    let is_listed = origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes());
    if is_listed || origins.iter().any(|listed| listed == "*") {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if is_listed {
        // Only for listed origins: with `*`, any page could read with the cookies of the user who looks at it.
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers
}

/// The answer to a preflight, by which a browser asks whether a page may make a request. Any headers may be sent: those
/// that mean nothing here change nothing.
pub fn preflight(tenant: &Tenant, request: &HeaderMap) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let own = answer.headers_mut();
    own.extend(cors(tenant, request));
    http_error::not_kept(own);
    if own.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        own.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
        if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            own.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        own.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
        own.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    answer
}
