//! Errors as HTTP answers: one JSON envelope, `{"error":{"code":"…","message":"…"}}`, made here only.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};

/// `code` is stable and for programs, `message` is for people.
pub fn answer(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let envelope = serde_json::json!({ "error": { "code": code, "message": message } });
    json(status, envelope.to_string())
}

/// The answer to a method other than GET and HEAD.
pub fn only_get() -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "method", "only GET and HEAD");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// Says that no cache may keep an answer: it is true for one client, and for a moment (RFC 9111 section 5.2.2.5).
pub fn not_kept(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Any answer in JSON.
pub fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    not_kept(response.headers_mut());
    response
}
