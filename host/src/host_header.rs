//! The host that a request is for, whichever form its target has: RFC 9112 sections 3.2 and 3.3.

use hyper::{
    Request, Version,
    header::{HOST, HeaderValue},
    http::uri::Authority,
};

/// Why the host cannot be told. A request with such a one is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    #[error("the header Host is missing")]
    Missing,
    #[error("the header Host is there twice")]
    Twice,
    #[error("the header Host is not a host with or without a port")]
    Malformed,
    #[error("the request's target is not a URL of a host with or without a port")]
    Target,
}

/// Checks the host, and has `Host` name the one of the target if the target is a whole URL. So whoever reads the header
/// later sees the host that the request is for.
pub fn settle<B>(request: &mut Request<B>) -> Result<(), BadHost> {
    let mut named = request.headers().get_all(HOST).iter();
    match (named.next(), named.next()) {
        (None, _) if request.version() < Version::HTTP_11 => {}
        (None, _) => return Err(BadHost::Missing),
        (Some(_), Some(_)) => return Err(BadHost::Twice),
        (Some(host), None) => drop(host_in(host).ok_or(BadHost::Malformed)?),
    }
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHost::Target)?;
        host_in(&host).filter(|host| !host.is_empty()).ok_or(BadHost::Target)?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// The host of a request that is [settled](settle), in lower case, without port. `None`: it names none.
pub fn host_of<B>(request: &Request<B>) -> Option<String> {
    host_in(request.headers().get(HOST)?).filter(|host| !host.is_empty())
}

/// The host of `host:port`, in lower case and without a dot at its end. An empty text is a host, too: that of a request
/// for something without one. `None`: it is malformed.
fn host_in(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    if text.is_empty() {
        return Some(String::new());
    }
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    // A user would be before it.
    let port = text.strip_prefix(host)?;
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (is_port && !host.is_empty()).then(|| host.trim_end_matches('.').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host that a request for this target with these hosts is for.
    fn host(target: &str, named: &[&str]) -> Result<Option<String>, BadHost> {
        let mut request = Request::builder().uri(target);
        for host in named {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        settle(&mut request)?;
        assert_eq!(request.headers().get_all(HOST).iter().count(), 1);
        Ok(host_of(&request))
    }

    #[test]
    fn hosts_have_neither_case_nor_port() {
        for (named, expected) in [
            ("Feed.Example.com:8080", Some("feed.example.com")),
            ("feed.example.com.", Some("feed.example.com")),
            ("feed.example.com:", Some("feed.example.com")),
            ("[::1]:80", Some("[::1]")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("", None),
        ] {
            assert_eq!(host("/", &[named]), Ok(expected.map(str::to_owned)), "{named}");
        }
    }

    #[test]
    fn the_targets_host_takes_the_place_of_the_headers() {
        assert_eq!(host("http://a.example:1/x", &["b.example"]), Ok(Some("a.example".into())));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for named in ["x@host", "x:y@host", "host:x", "host:80:80", "a b", "a/b", "[::1", ":80", "é"] {
            assert_eq!(host("/", &[named]), Err(BadHost::Malformed), "{named}");
        }
        assert_eq!(host("/", &[]), Err(BadHost::Missing));
        assert_eq!(host("/", &["a", "a"]), Err(BadHost::Twice));
        assert_eq!(host("http://x@a.example/", &["a.example"]), Err(BadHost::Target));
        assert_eq!(host("http://a.example/", &["a", "b"]), Err(BadHost::Twice));
        let mut old = Request::builder().version(Version::HTTP_10).uri("/").body(()).unwrap();
        assert_eq!((settle(&mut old), host_of(&old)), (Ok(()), None));
    }
}
