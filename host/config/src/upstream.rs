//! An upstream, as a manifest or a command line describes it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::header::{HeaderName, HeaderValue};

use crate::{
    grants::{Reach, Secret},
    secrets::SecretFile,
    url::PartnerUrl,
};

/// Most headers of one upstream; common servers refuse requests with a hundred.
const MAX_HEADERS: usize = 64;

/// Headers that the handshake sets itself, or that would give it a body. All with the prefix [`WEBSOCKET_HEADERS`] are
/// refused too.
const HANDSHAKE_HEADERS: [&str; 5] = ["host", "connection", "upgrade", "content-length", "transfer-encoding"];

/// The prefix of the handshake's own headers.
const WEBSOCKET_HEADERS: &str = "sec-websocket-";

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    pub name: Arc<str>,
    pub url: PartnerUrl,
    pub headers: Vec<(HeaderName, Credential)>,
    /// What comes behind the URL's own query: names and values, not encoded yet.
    pub query: Vec<(String, Credential)>,
    pub subprotocols: Vec<String>,
    /// Whether permessage-deflate is offered.
    pub compression: bool,
    pub tls: TlsConfig,
    /// Which addresses it may lead to.
    pub reach: Reach,
    /// Longest time without a byte before the connection counts as dead.
    pub idle_timeout: Duration,
    /// Longest time without a message before it counts as stale. `None`: messages may be as far apart as they like.
    pub data_timeout: Option<Duration>,
    /// What becomes of messages that come faster than they may.
    pub overflow: Overflow,
    /// Largest message accepted, in bytes. One frame may be as large.
    pub max_message: usize,
    /// `connect = "on-demand"`: how long it stays connected after its last client leaves. `None`: it is always
    /// connected.
    pub linger: Option<Duration>,
}

impl UpstreamConfig {
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
    pub const MAX_MESSAGE: usize = 16 << 20;
    /// The default for an upstream that is connected on demand.
    pub(crate) const LINGER: Duration = Duration::from_secs(30);

    /// An upstream with a name and a URL, that may lead anywhere.
    pub fn new(name: &str, url: PartnerUrl) -> Self {
        Self {
            name: name.into(),
            url,
            headers: Vec::new(),
            query: Vec::new(),
            subprotocols: Vec::new(),
            compression: false,
            tls: TlsConfig::default(),
            reach: Reach::Anywhere,
            idle_timeout: Self::IDLE_TIMEOUT,
            data_timeout: None,
            overflow: Overflow::default(),
            max_message: Self::MAX_MESSAGE,
            linger: None,
        }
    }

    /// The files that are read anew for each connection. One may be there several times.
    pub fn files(&self) -> impl Iterator<Item = &SecretFile> {
        let credentials = self.headers.iter().map(|(_, value)| value).chain(self.query.iter().map(|(_, value)| value));
        let credentials = credentials.filter_map(|value| match value {
            Credential::File(file) => Some(file),
            Credential::Plain(_) | Credential::Secret(_) => None,
        });
        credentials.chain(self.tls.files())
    }
}

/// What becomes of messages that a filter is too slow for, or that are more than the tenant may publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The partner is read no further until there is room.
    #[default]
    Wait,
    /// The oldest are dropped, and clients are told of a gap.
    Drop,
}

/// `[upstream.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates that are trusted beside the system's.
    pub roots: Option<SecretFile>,
    /// The client's certificate, and its key.
    pub certificate: Option<(SecretFile, SecretFile)>,
    /// The name that the partner's certificate is for. `None`: the URL's host.
    pub server_name: Option<String>,
}

impl TlsConfig {
    fn files(&self) -> impl Iterator<Item = &SecretFile> {
        let own = self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.roots.iter().chain(own)
    }
}

/// A value that the partner is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Written out.
    Plain(String),
    /// From the host's environment.
    Secret(Secret),
    /// From a file, read anew for each connection.
    File(SecretFile),
}

/// The names of a handshake's headers, checked one by one.
#[derive(Default)]
pub struct HeaderNames(BTreeSet<String>);

impl HeaderNames {
    /// Takes one more name.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn add(&mut self, name: &str) -> Result<HeaderName, String> {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err("is not an HTTP header's name; write letters, digits and hyphens".into());
        };
        if HANDSHAKE_HEADERS.contains(&name.as_str()) || name.as_str().starts_with(WEBSOCKET_HEADERS) {
            return Err("is set by the handshake itself; remove it (subprotocols are named apart)".into());
        }
        if self.0.len() >= MAX_HEADERS {
            return Err(format!("is one header too many; write at most {MAX_HEADERS}"));
        }
        if !self.0.insert(name.as_str().to_owned()) {
            return Err("is written twice: a header's name has no case; remove one".into());
        }
        Ok(name)
    }
}

/// A header's value.
///
/// # Errors
/// What is wrong with it, and what to do. It is not repeated.
pub fn header_value(text: &str) -> Result<HeaderValue, &'static str> {
    // Beyond ASCII it is sent as UTF-8 (`obs-text`, RFC 9110 section 5.5).
    let value = HeaderValue::from_bytes(text.as_bytes());
    value.map_err(|_| "cannot be a header's value; remove line breaks and control characters")
}

/// Subprotocols to offer, checked one by one.
#[derive(Default)]
pub struct Subprotocols(Vec<String>);

impl Subprotocols {
    /// Takes one more: a token (RFC 9110, 5.6.2), each only once (RFC 6455, 4.1).
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn add(&mut self, text: &str) -> Result<(), &'static str> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(token) {
            return Err("is not a subprotocol; write letters, digits, '.', '-' or '_'");
        }
        if self.0.iter().any(|offered| offered == text) {
            return Err("is listed twice; remove one");
        }
        self.0.push(text.into());
        Ok(())
    }

    pub fn into_offered(self) -> Vec<String> {
        self.0
    }
}
