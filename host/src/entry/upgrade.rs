//! The server's side of a WebSocket's opening handshake (RFC 6455 section 4.2).

use std::sync::atomic::Ordering;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{
        ALLOW, CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use wire::header::has_token;

use crate::{
    entry::{admission::wrong_subprotocol, refusal::Refusal},
    routes::Route,
};

/// An answer that opens a WebSocket.
pub struct Upgrade {
    accept: HeaderValue,
    pub extensions: Option<HeaderValue>,
    pub protocol: Option<HeaderValue>,
}

impl Upgrade {
    /// Checks what a request must have by section 4.2.1.
    pub fn check(request: &Request<Incoming>) -> Result<Self, Refusal> {
        let headers = request.headers();
        if !has_token(headers, &UPGRADE, "websocket") {
            let message = "this path speaks WebSocket: connect with ws:// or wss://";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "not_websocket", message).with(UPGRADE, "websocket"));
        }
        if request.method() != Method::GET {
            let message = "a WebSocket handshake is a GET request";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_handshake", message).with(ALLOW, "GET"));
        }
        let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, "bad_handshake", message);
        if request.version() != Version::HTTP_11 {
            return Err(bad("a WebSocket handshake is an HTTP/1.1 request"));
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err(bad("the header Connection does not say Upgrade"));
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            let message = "Sec-WebSocket-Version 13 is the one spoken here";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "bad_handshake", message)
                .with(SEC_WEBSOCKET_VERSION, "13")
                .with(UPGRADE, "websocket"));
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        if BASE64_STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
            return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        let accept =
            HeaderValue::try_from(derive_accept_key(key)).map_err(|_| bad("Sec-WebSocket-Key cannot be answered"))?;
        Ok(Self { accept, extensions: None, protocol: None })
    }

    /// Answers one of the subprotocols that the client offers (RFC 6455 section 4.2.2): the one that the tenant's
    /// handler has `chosen`, else the first that the manifest lists. A browser would drop a connection whose
    /// subprotocol is not answered, so it is told why there is none.
    pub fn choose_subprotocol(
        &mut self,
        Route { tenant, handler, .. }: &Route,
        request: &HeaderMap,
        chosen: Option<&str>,
    ) -> Result<(), Refusal> {
        let values = request.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        let offered = values.flat_map(|value| value.split(',')).map(str::trim);
        let mut offered = offered.filter(|name| !name.is_empty()).peekable();
        if let Some((handler, chosen)) = handler.as_ref().zip(chosen) {
            let offered = offered.find(|name| *name == chosen).ok_or_else(|| wrong_subprotocol(handler, chosen))?;
            self.protocol = HeaderValue::from_str(offered).ok();
            return Ok(());
        }
        if offered.peek().is_none() {
            return Ok(());
        }
        let version = tenant.version();
        if let Some(chosen) = offered.find(|name| version.subprotocols.iter().any(|listed| listed == name)) {
            self.protocol = HeaderValue::from_str(chosen).ok();
            return Ok(());
        }
        if request.contains_key(ORIGIN) {
            let listed = version.subprotocols.join(", ");
            let there = if listed.is_empty() { "it lists none".to_owned() } else { format!("it lists {listed}") };
            let message = format!("this tenant takes none of the subprotocols that are offered; {there}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "subprotocol", &message));
        }
        // What is offered may be a token.
        if !version.told_subprotocols.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                tenant.name = %tenant.name,
                "a client offers subprotocols of which the tenant takes none; it is let in without one"
            );
        }
        Ok(())
    }

    pub fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        headers.extend(self.extensions.map(|extensions| (SEC_WEBSOCKET_EXTENSIONS, extensions)));
        headers.extend(self.protocol.map(|protocol| (SEC_WEBSOCKET_PROTOCOL, protocol)));
        response
    }
}
