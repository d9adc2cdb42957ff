//! CORS: which web pages may read a tenant's publications over HTTP (Fetch standard, section 3.2).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, CONNECTION, HeaderValue, ORIGIN, VARY,
    },
};

use crate::tenant::Tenant;

/// The CORS headers of an answer to a request.
pub fn headers(tenant: &Tenant, request: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let cors = &tenant.version().cors;
    if cors.is_empty() {
        return headers;
    }
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = request.get(ORIGIN) else { return headers };
    let is_listed = cors.iter().any(|listed| listed.as_bytes() == origin.as_bytes());
    if is_listed || cors.iter().any(|listed| listed == "*") {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if is_listed {
        // Only for listed origins: with `*`, any page could read with the cookies of the user who looks at it.
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers
}

/// The answer to a preflight, by which a browser asks whether a page may make a request.
pub fn preflight(tenant: &Tenant, request: &HeaderMap) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let own = answer.headers_mut();
    // It is a handshake's listener, and has no other request on a connection.
    own.insert(CONNECTION, HeaderValue::from_static("close"));
    own.extend(headers(tenant, request));
    if own.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        own.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
        own.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Last-Event-ID"));
        own.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    answer
}
