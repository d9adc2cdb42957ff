//! The host that a request is for, whichever form its target has: RFC 9112 sections 3.2 to 3.3, RFC 9110 section 4.2.1.

use std::net::Ipv6Addr;

use hyper::{
    Request, Version,
    header::{HOST, HeaderValue},
    http::uri::Authority,
};

/// Why a request is answered with 400: nobody can tell which host it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    #[error("the header Host is missing")]
    Missing,
    #[error("the header Host is there more than once")]
    Many,
    #[error("the header Host is not a host with or without a port")]
    Malformed,
    #[error("the request's target is neither a path nor a URL of a host with or without a port")]
    Target,
}

/// Checks the host. If the target is a whole URL, `Host` is replaced by the host of that URL, so that all who read the
/// header later see the host that the request is for.
pub fn check_host<B>(request: &mut Request<B>) -> Result<(), BadHost> {
    let mut named = request.headers().get_all(HOST).iter();
    match (named.next(), named.next()) {
        (None, _) if request.version() < Version::HTTP_11 => {}
        (None, _) => return Err(BadHost::Missing),
        (Some(_), Some(_)) => return Err(BadHost::Many),
        (Some(host), None) if host_in(host).is_none() => return Err(BadHost::Malformed),
        (Some(_), None) => {}
    }
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHost::Target)?;
        // A target that is nothing but a host is for CONNECT, which nobody here answers.
        if request.uri().scheme().is_none() || host_in(&host).is_none() {
            return Err(BadHost::Target);
        }
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// The host of a request that is [checked](check_host), in lower case, without port. `None`: it names none, which only
/// HTTP/1.0 allows.
pub fn host_of<B>(request: &Request<B>) -> Option<String> {
    host_in(request.headers().get(HOST)?)
}

/// The host of `host` or `host:port`, in lower case and without the dot that a complete name may end with. `None`: it
/// is malformed.
fn host_in(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    // A user's name would come first.
    let port = text.strip_prefix(host)?;
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.contains(['[', ']']),
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_whole = !name.is_empty() && !name.ends_with('.');
    (is_host && is_whole && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)))
        .then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host that a request for this target with these hosts is for.
    fn host(target: &str, named: &[&str]) -> Result<String, BadHost> {
        let mut request = Request::builder().uri(target);
        for host in named {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        check_host(&mut request)?;
        assert_eq!(request.headers().get_all(HOST).iter().count(), 1);
        Ok(host_of(&request).unwrap())
    }

    #[test]
    fn hosts_have_neither_case_nor_port() {
        for (named, expected) in [
            ("Feed.Example.com:8080", "feed.example.com"),
            ("feed.example.com.", "feed.example.com"),
            ("feed.example.com:", "feed.example.com"),
            ("[::1]:80", "[::1]"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(host("/", &[named]), Ok(expected.to_owned()), "{named}");
        }
    }

    #[test]
    fn the_targets_host_takes_the_place_of_the_headers() {
        assert_eq!(host("http://a.example:1/x", &["b.example"]), Ok("a.example".into()));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for named in [
            "x@host",
            "x:y@host",
            "host:x",
            "host:80:80",
            "a b",
            "a/b",
            "[::1",
            "[foo]",
            "a[b]",
            ":80",
            ".",
            "a..",
            "",
            "é",
        ] {
            assert_eq!(host("/", &[named]), Err(BadHost::Malformed), "{named}");
        }
        assert_eq!(host("/", &[]), Err(BadHost::Missing));
        assert_eq!(host("/", &["a", "a"]), Err(BadHost::Many));
        assert_eq!(host("http://x@a.example/", &["a.example"]), Err(BadHost::Target));
        assert_eq!(host("b.example", &["a.example"]), Err(BadHost::Target));
        assert_eq!(host("http://a.example/", &["a", "b"]), Err(BadHost::Many));
        let mut old = Request::builder().version(Version::HTTP_10).uri("/").body(()).unwrap();
        assert_eq!((check_host(&mut old), host_of(&old)), (Ok(()), None));
    }
}
