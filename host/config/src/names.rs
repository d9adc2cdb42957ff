//! Names, host names, paths and URLs, as an operator or a tenant writes them.

use std::net::Ipv6Addr;

use http::Uri;

use crate::{
    document::{Value, quote},
    units::digits,
};

/// Most bytes of a tenant's or an upstream's name, the same as in a DNS label.
const MAX_NAME_BYTES: usize = 63;

/// Most bytes of a path or of a channel's pattern.
pub(super) const MAX_PATH_BYTES: usize = 255;

/// A name or a path that only one tenant may have.
pub(super) struct Claim {
    pub(super) value: String,
    pub(super) line: Option<usize>,
}

/// The name of a tenant or an upstream.
pub(super) fn name(value: &Value<'_>) -> Option<Claim> {
    let text = value.str()?;
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(lower)
        && text.bytes().all(|byte| lower(byte) || byte == b'-');
    if !valid {
        let rule = "lower-case letters, digits and hyphens, beginning with a letter or digit";
        value.problem(format!("{} is not a name; write at most {MAX_NAME_BYTES} {rule}", quote(text)));
        return None;
    }
    Some(Claim { value: text.into(), line: value.place.line() })
}

/// One of a tenant's host names: as clients send it in `Host`, without a port.
pub(super) fn host(value: &Value<'_>) -> Option<Claim> {
    let text = value.str()?;
    if !is_host(text) {
        value.problem(format!("{} is not a host name; write for example \"feed.example.com\", no port", quote(text)));
        return None;
    }
    Some(Claim { value: text.to_ascii_lowercase(), line: value.place.line() })
}

/// Whether a host can have this name.
pub(super) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=MAX_NAME_BYTES).contains(&label.len()) && label.bytes().all(inner)
    };
    !text.is_empty() && text.len() <= MAX_PATH_BYTES && text.split('.').all(label)
}

/// The path of a tenant.
pub(super) fn path(value: &Value<'_>) -> Option<Claim> {
    let text = value.str()?;
    if text.len() > MAX_PATH_BYTES {
        value.problem(format!("{} is too long; write at most {MAX_PATH_BYTES} bytes", quote(text)));
        return None;
    }
    let mut segments = text.strip_prefix('/').unwrap_or_default().split('/');
    let fix = if !text.starts_with('/') {
        "begin it with '/'"
    } else if text.contains(['?', '#']) {
        "write the path alone, with no '?' or '#'"
    } else if text != "/" && segments.clone().any(str::is_empty) {
        "write no '//' and no '/' at the end"
    } else if segments.any(|segment| segment == "." || segment == "..") {
        "write no '.' or '..' segment: clients resolve them before they connect"
    } else if text.parse::<Uri>().is_err() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "percent-encode what is not plain ASCII"
    } else {
        return Some(Claim { value: text.into(), line: value.place.line() });
    };
    value.problem(format!("{} is not a path clients can connect to; {fix}", quote(text)));
    None
}

/// An upstream's URL. Problems do not repeat it: partners put keys into queries.
pub(super) fn url(value: &Value<'_>) -> Option<Uri> {
    let text = value.str()?;
    let uri = text.parse::<Uri>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_graphic()));
    let scheme = text.starts_with("ws://") || text.starts_with("wss://");
    let message = match (uri, text.contains('#')) {
        _ if !scheme => "must begin with ws:// or wss://",
        (_, true) => "must have no fragment; remove '#' and what follows",
        (Some(uri), _) => match uri.authority() {
            Some(authority) if authority.as_str().contains('@') => {
                "must have no user or password; send them in headers.Authorization"
            }
            Some(authority) if host_and_port(authority.as_str(), authority.host()) => return Some(uri),
            _ => "must have a host and, if any, a port from 1 to 65535",
        },
        (None, _) => "is not a URL; write for example \"wss://feed.example.com/stream\"",
    };
    value.problem(message);
    None
}

/// Whether `authority` is a possible host, alone or with a port.
fn host_and_port(authority: &str, host: &str) -> bool {
    let port = match authority.strip_prefix(host) {
        Some("") => true,
        Some(rest) => rest.strip_prefix(':').and_then(digits).is_some_and(|port| (1..=65_535).contains(&port)),
        None => false,
    };
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty(),
    };
    host && port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::problems;

    /// Whether `check` accepts `text`. If not, it must record exactly one problem.
    fn takes<T>(text: &str, check: impl FnOnce(&Value<'_>) -> Option<T>) -> bool {
        let mut taken = false;
        let found = problems(&format!("k = {text:?}"), |mut root| taken = check(&root.take("k").unwrap()).is_some());
        assert_eq!(found.len(), usize::from(!taken), "{text}: {found:?}");
        taken
    }

    #[test]
    fn names() {
        let longest = "a".repeat(63);
        for text in ["market", "a", "0", "a-b", "1-2-", &longest] {
            assert!(takes(text, name), "{text}");
        }
        for text in ["", "-a", "A", "a_b", "a.b", "a b", "é", "../a", &format!("{longest}a")] {
            assert!(!takes(text, name), "{text}");
        }
    }

    #[test]
    fn paths() {
        for text in ["/", "/a", "/a/b-c_d.e", "/%20"] {
            assert!(takes(text, path), "{text}");
        }
        let long = format!("/{}", "a".repeat(255));
        for text in [
            "",
            "a",
            "a/b",
            "/a/",
            "//",
            "/a//b",
            "/a?b",
            "/a#b",
            "/./a",
            "/a/..",
            "/é",
            "/a b",
            "/a\n",
            "http://a/",
            &long,
        ] {
            assert!(!takes(text, path), "{text}");
        }
    }

    #[test]
    fn urls() {
        for text in ["ws://a", "wss://feed.example.com/stream?x=1", "ws://127.0.0.1:80/", "wss://[::1]:8/a", "ws://a?b"]
        {
            assert!(takes(text, url), "{text}");
        }
        for text in [
            "",
            "a",
            "/a",
            "http://a",
            "WS://a",
            "ws:a",
            "ws://",
            "ws:///a",
            "ws://:80",
            "ws://a:",
            "ws://a:0",
            "ws://a:99999",
            "ws://a:80:80",
            "ws://a:+80",
            "ws://u:p@a/",
            "ws://a/#f",
            "ws://a/é",
            "ws://é/",
            "ws://a b/",
            "ws://[z]/",
            "ws://[::1",
            " ws://a",
        ] {
            assert!(!takes(text, url), "{text}");
        }
    }

    #[test]
    fn urls_are_not_repeated() {
        for text in ["ws://hunter2@a/", "http://a/?key=hunter2", "ws://a:0/?key=hunter2", "ws://a/#hunter2"] {
            let found = problems(&format!("k = {text:?}"), |mut root| assert!(url(&root.take("k").unwrap()).is_none()));
            assert!(!found.concat().contains("hunter2"), "{found:?}");
        }
    }
}
