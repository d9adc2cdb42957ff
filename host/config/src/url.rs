//! The URL of a partner's WebSocket: RFC 6455 section 3, parsed as browsers do it (URL Standard).
//!
//! The manifest, `pass`, redirects and dial components all come through here. Errors do not repeat the URL: partners
//! put keys into queries.

use std::{fmt, net::IpAddr};

use url::{Host, ParseError, Url};

/// Longest URL, in bytes and percent-encoded. Common servers take 8 KiB.
const MAX_BYTES: usize = 16 << 10;

/// The longest part of a URL that a message shows.
const MAX_SHOWN: usize = 200;

/// Characters that no host has (URL Standard, "forbidden domain code point"), besides those that end a host.
const FORBIDDEN_IN_HOST: &str = " #%<>@[]^|";

/// A URL that can be dialed.
#[derive(Clone, PartialEq, Eq)]
pub struct PartnerUrl(Url);

/// Why a text is no such URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl From<&str> for UrlError {
    fn from(why: &str) -> Self {
        Self(why.into())
    }
}

impl PartnerUrl {
    /// What browsers would percent-encode is encoded.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let is_scheme = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let Some(scheme) = ["ws://", "wss://"].into_iter().find(|scheme| is_scheme(scheme)) else {
            return Err("must begin with ws:// or wss://".into());
        };
        check_length(text.len())?;
        check_edges(text)?;
        let rest = text.get(scheme.len()..).unwrap_or_default();
        let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err("must have a host and, if any, a port from 1 to 65535".into());
        }
        if authority.contains('@') {
            return Err("must have no user or password; send them in headers.Authorization".into());
        }
        Self::checked(Url::parse(text).map_err(|error| explain(error, authority))?)
    }

    /// The URL that a redirect leads to (RFC 9110 section 10.2.2). `http` and `https` count as `ws` and `wss`.
    pub fn redirected(&self, location: &str) -> Result<Self, UrlError> {
        check_length(location.len())?;
        check_edges(location)?;
        let mut url = self.0.join(location).map_err(|error| UrlError(error.to_string()))?;
        let scheme = match url.scheme() {
            "http" | "ws" => "ws",
            "https" | "wss" => "wss",
            _ => return Err("must begin with ws:// or wss://".into()),
        };
        // These schemes can take each other's place.
        if url.scheme() != scheme && url.set_scheme(scheme).is_err() {
            return Err("must begin with ws:// or wss://".into());
        }
        // A fragment is for the page that a browser would show.
        url.set_fragment(None);
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must have no user or password".into());
        }
        Self::checked(url)
    }

    /// The same server with another path, another query, and more behind the query.
    pub fn with(&self, path: Option<&str>, query: Option<&str>, more: &[(String, String)]) -> Result<Self, UrlError> {
        let mut url = self.0.clone();
        if let Some(path) = path {
            if !path.starts_with('/') {
                return Err("must have a path that begins with '/'".into());
            }
            if path.contains(['?', '#']) {
                return Err("must have a path without '?' and '#'; the query is a value of its own".into());
            }
            check_edges(path)?;
            url.set_path(path);
        }
        if let Some(query) = query {
            check_edges(query)?;
            if query.starts_with('?') {
                return Err("must have a query without the '?' before it".into());
            }
            url.set_query(Some(query).filter(|query| !query.is_empty()));
        }
        if !more.is_empty() {
            url.query_pairs_mut().extend_pairs(more);
        }
        Self::checked(url)
    }

    fn checked(url: Url) -> Result<Self, UrlError> {
        check_length(url.as_str().len())?;
        if url.fragment().is_some() {
            return Err("must have no fragment; remove '#' and what follows".into());
        }
        if url.host().is_none() || url.port_or_known_default().is_none_or(|port| port == 0) {
            return Err("must have a host and, if any, a port from 1 to 65535".into());
        }
        Ok(Self(url))
    }

    /// Whether it asks for TLS.
    pub fn is_secure(&self) -> bool {
        self.0.scheme() == "wss"
    }

    /// The host's name in lower case, or its address without brackets.
    pub fn host(&self) -> Result<IpAddr, &str> {
        match self.0.host() {
            Some(Host::Ipv4(address)) => Ok(address.into()),
            Some(Host::Ipv6(address)) => Ok(address.into()),
            Some(Host::Domain(name)) => Err(name),
            None => Err(""),
        }
    }

    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// The value of the header `Host`: the port is left out if it is the scheme's own.
    pub fn authority(&self) -> &str {
        self.0.authority()
    }

    /// What a request asks for: never empty, since a URL without a path has the path `/` (RFC 6455 section 3).
    pub fn target(&self) -> &str {
        self.0.as_str().split_at_checked(self.before_path().len()).map_or("/", |(_, target)| target)
    }

    /// Whether secrets for one of both may be sent to the other: scheme, host and port are the same.
    pub fn has_same_origin(&self, other: &Self) -> bool {
        (self.0.scheme(), self.0.host(), self.port()) == (other.0.scheme(), other.0.host(), other.port())
    }

    /// The whole URL, with its query.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    fn before_path(&self) -> &str {
        self.0
            .as_str()
            .split_at_checked(self.0.scheme().len() + 3 + self.0.authority().len())
            .map_or("", |(start, _)| start)
    }
}

/// Shows no query, for that may have keys in it.
impl fmt::Display for PartnerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.path();
        let end = path.floor_char_boundary(MAX_SHOWN);
        let cut = if end < path.len() { "…" } else { "" };
        write!(f, "{}{}{cut}", self.before_path(), path.get(..end).unwrap_or_default())
    }
}

impl fmt::Debug for PartnerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.0.query().is_some() { "?…" } else { "" };
        write!(f, "PartnerUrl({self}{query})")
    }
}

fn check_length(bytes: usize) -> Result<(), UrlError> {
    if bytes > MAX_BYTES {
        return Err(UrlError(format!("is {bytes} bytes long; write at most {MAX_BYTES}")));
    }
    Ok(())
}

/// Refuses what the URL Standard would leave out in silence.
fn check_edges(text: &str) -> Result<(), UrlError> {
    let left_out = |char: &char| matches!(char, '\t' | '\n' | '\r');
    let edge = |char: &char| char.is_ascii_control() || *char == ' ';
    let ends = [text.chars().next(), text.chars().next_back()];
    match text.chars().find(left_out).or_else(|| ends.into_iter().flatten().find(edge)) {
        Some(char) => {
            Err(UrlError(format!("has the character {char:?} in it or at its end; remove it, or percent-encode it")))
        }
        None => Ok(()),
    }
}

fn explain(error: ParseError, authority: &str) -> UrlError {
    let host = authority.split(':').next().unwrap_or_default();
    let forbidden = |char: &char| char.is_control() || FORBIDDEN_IN_HOST.contains(*char);
    match error {
        ParseError::InvalidPort => "must have a port from 1 to 65535, or none".into(),
        ParseError::InvalidIpv6Address => {
            "has an IPv6 address in it that is none; write for example ws://[::1]:9000/".into()
        }
        ParseError::InvalidIpv4Address => "has an IPv4 address in it that is none; write four numbers up to 255".into(),
        _ => match host.chars().find(forbidden) {
            Some(char) => UrlError(format!("has the character {char:?} in its host, which no name and no address has")),
            None => "has a host that is neither a name nor an address".into(),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> PartnerUrl {
        PartnerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        PartnerUrl::parse(text).map(|url| panic!("{text} is {url:?}")).unwrap_err().to_string()
    }

    #[test]
    fn what_is_asked_for_and_where() {
        for (text, secure, authority, port, target) in [
            ("ws://a", false, "a", 80, "/"),
            ("WSS://A.Example", true, "a.example", 443, "/"),
            ("ws://a?b=c", false, "a", 80, "/?b=c"),
            ("ws://a:9000/x?b", false, "a:9000", 9000, "/x?b"),
            ("wss://a:443/", true, "a", 443, "/"),
            ("ws://127.0.0.1:80/", false, "127.0.0.1", 80, "/"),
            ("ws://[::1]:8/a", false, "[::1]:8", 8, "/a"),
            ("ws://a.:9000/", false, "a.:9000", 9000, "/"),
            ("ws://a:/", false, "a", 80, "/"),
            // What browsers percent-encode, and the names that they encode otherwise.
            (
                "ws://a/\u{e9} {x}|\"<>`?y=\u{e9} \"<>'{}|^`",
                false,
                "a",
                80,
                "/%C3%A9%20%7Bx%7D|%22%3C%3E%60?y=%C3%A9%20%22%3C%3E%27{}|^`",
            ),
            ("ws://\u{e9}.example/", false, "xn--9ca.example", 80, "/"),
            ("ws://a/%zz/../b", false, "a", 80, "/b"),
            // Addresses in old spellings.
            ("ws://0x7f.1/", false, "127.0.0.1", 80, "/"),
        ] {
            let url = parsed(text);
            let found = (url.is_secure(), url.authority(), url.port(), url.target());
            assert_eq!(found, (secure, authority, port, target), "{text}");
            url.target().parse::<http::Uri>().unwrap();
        }
        assert_eq!(parsed("ws://[::ffff:10.0.0.1]/").host(), Ok("::ffff:10.0.0.1".parse().unwrap()));
        assert_eq!(parsed("ws://Feed.Example/").host(), Err("feed.example"));
    }

    #[test]
    fn what_cannot_be_dialed_says_why() {
        for (text, words) in [
            ("", "must begin with ws://"),
            ("a", "must begin with ws://"),
            ("http://a", "must begin with ws://"),
            ("ws:a", "must begin with ws://"),
            (" ws://a", "must begin with ws://"),
            ("ws://", "must have a host"),
            ("ws:///a", "must have a host"),
            ("ws://?a", "must have a host"),
            ("ws://:80", "has a host that is neither"),
            ("ws://a:0", "a port from 1 to 65535"),
            ("ws://a:99999/", "must have a port from 1 to 65535"),
            ("ws://a:80:80", "must have a port"),
            ("ws://a:+80", "must have a port"),
            ("ws://u:p@a/", "must have no user"),
            ("ws://a/#f", "must have no fragment"),
            ("ws://a b/", "the character ' ' in its host"),
            ("ws://a|b/", "the character '|' in its host"),
            ("ws://a%00b/", "the character '%' in its host"),
            ("ws://[z]/", "IPv6"),
            ("ws://[::1", "IPv6"),
            ("ws://1.2.3.999/", "IPv4"),
            ("ws://a/\n", "the character '\\n'"),
            ("ws://a/b\tc", "the character '\\t'"),
            ("ws://a/ ", "the character ' '"),
        ] {
            let found = refused(text);
            assert!(found.contains(words), "{text}: {found}");
        }
        let long = format!("ws://a/{}", "b".repeat(MAX_BYTES));
        assert_eq!(refused(&long), format!("is {} bytes long; write at most 16384", MAX_BYTES + 7));
        assert!(refused(&format!("ws://a/{}", "\u{e9}".repeat(5000))).contains("is 30007 bytes long"));
    }

    #[test]
    fn redirects_are_read_as_browsers_read_them() {
        let from = parsed("wss://a.example:8443/one/two?key=1");
        for (location, to) in [
            ("/three", "wss://a.example:8443/three"),
            ("three?x", "wss://a.example:8443/one/three?x"),
            ("https://b.example/#f", "wss://b.example/"),
            ("//b.example/", "wss://b.example/"),
            ("http://b.example", "ws://b.example/"),
        ] {
            assert_eq!(from.redirected(location), Ok(parsed(to)), "{location}");
        }
        for location in ["ftp://a/", "https://u@a/", "https://a:0/", "ws://a b/", "/a\nb"] {
            assert!(from.redirected(location).is_err(), "{location}");
        }
        assert!(from.has_same_origin(&parsed("wss://a.example:8443/")));
        for other in ["ws://a.example:8443/", "wss://a.example/", "wss://b.example:8443/"] {
            assert!(!from.has_same_origin(&parsed(other)), "{other}");
        }
    }

    #[test]
    fn parts_are_replaced_and_added() {
        let url = parsed("ws://a/one?key=1");
        let with = |path, query, more: &[(&str, &str)]| {
            let more: Vec<_> = more.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            url.with(path, query, &more).map(|url| url.target().to_owned())
        };
        assert_eq!(with(None, None, &[]), Ok("/one?key=1".into()));
        assert_eq!(with(Some("/t w"), None, &[("a", "b&c")]), Ok("/t%20w?key=1&a=b%26c".into()));
        assert_eq!(with(None, Some("x=#"), &[]), Ok("/one?x=%23".into()));
        assert_eq!(with(None, Some(""), &[("a", "")]), Ok("/one?a=".into()));
        for (path, query) in [("two", ""), ("/\n", ""), ("/two?a=b", ""), ("/two#", ""), ("/two", "?a=b")] {
            assert!(with(Some(path), Some(query), &[]).is_err(), "{path} {query}");
        }
    }

    #[test]
    fn queries_are_not_shown() {
        let url = parsed("ws://a/x?key=hunter2");
        assert_eq!((format!("{url}"), format!("{url:?}")), ("ws://a/x".into(), "PartnerUrl(ws://a/x?…)".into()));
        let long = parsed(&format!("ws://a/{}", "b".repeat(1000)));
        assert!(long.to_string().len() < 220);
        for text in ["ws://hunter2@a/", "http://a/?key=hunter2", "ws://a:0/?key=hunter2", "ws://a/#hunter2"] {
            assert!(!refused(text).contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_can_be_asked_for(text in "ws://(a|\\PC{0,5})(:[0-9]{0,6})?[/?#]?\\PC{0,20}", location: String) {
            if let Ok(url) = PartnerUrl::parse(&text) {
                prop_assert!(url.target().parse::<http::Uri>().is_ok(), "{}", url.target());
                prop_assert!(url.target().starts_with('/'));
                prop_assert!(http::HeaderValue::from_str(url.authority()).is_ok());
                if let Ok(next) = url.redirected(&location) {
                    prop_assert!(next.target().parse::<http::Uri>().is_ok(), "{}", next.target());
                }
            }
        }
    }
}
