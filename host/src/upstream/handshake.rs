//! The client's side of a WebSocket's opening handshake (RFC 6455 section 4.1).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use config::PartnerUrl;
use http_body_util::Empty;
use hyper::{
    Request,
    header::{
        CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use wire::{
    deflate::{OFFER, ServerAgreed, agreed_by_server},
    header::has_token,
};

/// What is offered to the partner.
pub struct Handshake<'h> {
    key: String,
    subprotocols: &'h [String],
    compression: bool,
}

/// What a partner's answer has that it must not have, or lacks.
#[derive(Debug, thiserror::Error)]
#[error("the partner's answer to the handshake has {0}")]
pub struct BadAnswer(String);

impl<'h> Handshake<'h> {
    pub fn new(subprotocols: &'h [String], compression: bool) -> Self {
        Self { key: BASE64_STANDARD.encode(rand::random::<[u8; 16]>()), subprotocols, compression }
    }

    /// The request, with these headers besides the handshake's own.
    pub fn request(
        &self,
        url: &PartnerUrl,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let mut request = Request::get(url.target())
            .header(HOST, url.authority())
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "Upgrade")
            .header(SEC_WEBSOCKET_KEY, &self.key)
            .header(SEC_WEBSOCKET_VERSION, "13");
        if !self.subprotocols.is_empty() {
            request = request.header(SEC_WEBSOCKET_PROTOCOL, self.subprotocols.join(", "));
        }
        if self.compression {
            request = request.header(SEC_WEBSOCKET_EXTENSIONS, OFFER);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(Empty::new())
    }

    /// Checks what an answer with status 101 must have. Returns what it agrees on about compression.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<ServerAgreed>, BadAnswer> {
        if !headers.get_all(UPGRADE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return Err(BadAnswer("no `Upgrade: websocket`".into()));
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err(BadAnswer("no `Connection: Upgrade`".into()));
        }
        let accept = derive_accept_key(self.key.as_bytes());
        if headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value.as_bytes().trim_ascii() != accept.as_bytes()) {
            return Err(BadAnswer("no `Sec-WebSocket-Accept` that fits the key".into()));
        }
        self.check_subprotocol(headers)?;
        agreed_by_server(headers, self.compression).map_err(BadAnswer)
    }

    fn check_subprotocol(&self, headers: &HeaderMap) -> Result<(), BadAnswer> {
        let mut chosen = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let Some(first) = chosen.next() else { return Ok(()) };
        if chosen.next().is_some() {
            return Err(BadAnswer("more than one `Sec-WebSocket-Protocol`".into()));
        }
        if first.is_empty() || self.subprotocols.iter().any(|offered| offered.as_bytes() == first.as_bytes()) {
            return Ok(());
        }
        Err(BadAnswer(format!(
            "the subprotocol {:.64?}, which was not offered",
            String::from_utf8_lossy(first.as_bytes())
        )))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checked(
        subprotocols: &[&str],
        compression: bool,
        lines: &[(&str, &str)],
    ) -> Result<Option<ServerAgreed>, String> {
        let subprotocols: Vec<_> = subprotocols.iter().map(ToString::to_string).collect();
        let handshake = Handshake::new(&subprotocols, compression);
        let mut headers = HeaderMap::new();
        let accept = derive_accept_key(handshake.key.as_bytes());
        for (name, value) in lines {
            let value = value.replace("ACCEPT", &accept);
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        handshake.check(&headers).map_err(|error| error.to_string())
    }

    const GOOD: [(&str, &str); 3] =
        [("Upgrade", "WebSocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "ACCEPT")];

    #[test]
    fn answers_that_the_rfc_allows() {
        assert_eq!(checked(&[], false, &GOOD), Ok(None));
        for connection in [
            &["keep-alive, UPGRADE"][..],
            &["Upgrade,"],
            &[",, Upgrade ,"],
            &["keep-alive", "upgrade"],
            &["", "upgrade"],
        ] {
            let lines: Vec<_> =
                connection.iter().map(|value| ("CONNECTION", *value)).chain([GOOD[0], GOOD[2]]).collect();
            assert_eq!(checked(&[], false, &lines), Ok(None), "{connection:?}");
        }
        let with = |name, value| [&GOOD[..], &[(name, value)]].concat();
        assert_eq!(checked(&["v1", "v2"], false, &GOOD), Ok(None), "offered and not chosen");
        assert_eq!(checked(&["v1", "v2"], false, &with("sec-websocket-protocol", "v2")), Ok(None));
        assert_eq!(checked(&[], false, &with("sec-websocket-protocol", "")), Ok(None));
        let agreed = checked(&[], true, &with("sec-websocket-extensions", "permessage-deflate"));
        assert_eq!(agreed, Ok(Some(ServerAgreed { keeps_context: true })));
    }

    #[test]
    fn answers_that_it_does_not_allow() {
        for missing in 0..GOOD.len() {
            let mut lines = GOOD.to_vec();
            let (name, _) = lines.remove(missing);
            let found = checked(&[], false, &lines).unwrap_err();
            assert!(found.contains(name), "{found}");
        }
        for (name, value, words) in [
            ("sec-websocket-protocol", "v3", "the subprotocol \"v3\", which was not offered"),
            ("sec-websocket-protocol", "V1", "the subprotocol \"V1\""),
            ("sec-websocket-protocol", "v1, v2", "the subprotocol \"v1, v2\""),
            (
                "sec-websocket-extensions",
                "permessage-deflate",
                "the extension \"permessage-deflate\", which was not offered",
            ),
            ("sec-websocket-extensions", "x-webkit-deflate-frame", "which was not offered"),
        ] {
            let found = checked(&["v1", "v2"], false, &[&GOOD[..], &[(name, value)]].concat()).unwrap_err();
            assert!(found.contains(words), "{found}");
        }
        let twice = [&GOOD[..], &[("sec-websocket-protocol", "v1"), ("sec-websocket-protocol", "v1")]].concat();
        assert!(checked(&["v1"], false, &twice).is_err());
        assert!(checked(&[], false, &[GOOD[0], GOOD[1], ("Sec-WebSocket-Accept", "bm90IHRoaXM=")]).is_err());
    }

    #[test]
    fn the_request_is_the_rfcs() {
        let url = PartnerUrl::parse("ws://Feed.Example:9000?a b").unwrap();
        let subprotocols = ["v1".to_owned(), "v2".to_owned()];
        let more = [(HeaderName::from_static("x-one"), HeaderValue::from_static("1"))];
        let handshake = Handshake::new(&subprotocols, true);
        let request = handshake.request(&url, &more).unwrap();
        assert_eq!(request.uri(), "/?a%20b");
        assert_eq!(BASE64_STANDARD.decode(request.headers()[SEC_WEBSOCKET_KEY].as_bytes()).unwrap().len(), 16);
        for (name, value) in [
            ("host", "feed.example:9000"),
            ("sec-websocket-protocol", "v1, v2"),
            ("sec-websocket-extensions", "permessage-deflate; client_no_context_takeover; client_max_window_bits"),
            ("x-one", "1"),
        ] {
            assert_eq!(request.headers()[name], value);
        }
        assert!(
            !Handshake::new(&[], false).request(&url, &[]).unwrap().headers().contains_key(SEC_WEBSOCKET_EXTENSIONS)
        );
    }
}
