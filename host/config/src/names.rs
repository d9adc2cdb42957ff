//! Names, host names and paths, as an operator or a tenant writes them.

use http::Uri;
use percent_encoding::percent_decode_str;

use crate::document::{Value, quote};

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
    } else if is_reserved(text) {
        "write one that is no door of the tenant at '/': it has /sse, /connection/websocket and all of /channels, and \
         /healthz is the host's"
    } else if text.parse::<Uri>().is_err() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "percent-encode what is not plain ASCII"
    } else {
        return Some(Claim { value: text.into(), line: value.place.line() });
    };
    value.problem(format!("{} is not a path clients can connect to; {fix}", quote(text)));
    None
}

/// Whether a path, or what a proxy may make of it, leads to a door of the tenant at `/`, or is the host's own.
pub(super) fn is_reserved(path: &str) -> bool {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    matches!(decoded.trim_end_matches('/'), "/sse" | "/connection/websocket" | "/channels" | "/healthz")
        || decoded.starts_with("/channels/")
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
        for text in ["/", "/a", "/a/b-c_d.e", "/%20", "/a/sse", "/ssex", "/connection", "/channel"] {
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
            "/sse",
            "/%73se",
            "/connection/websocket",
            "/connection%2Fwebsocket",
            "/channels",
            "/channels/a/b",
            "/channels%2fa",
            "/healthz",
            &long,
        ] {
            assert!(!takes(text, path), "{text}");
        }
    }
}
