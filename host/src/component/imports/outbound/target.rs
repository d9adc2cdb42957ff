//! Where a request goes, and whether the grants allow it.

use std::net::Ipv6Addr;

use config::grants::Destinations;
use hyper::Uri;
use wasmtime_wasi_http::Error;

use crate::{
    component::imports::outbound::RequestFailure,
    dial::{Server, ServerHost},
};

/// The schemes' default ports.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Why a request is not sent. The text is the host as the guest wrote it, with the port.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// No call is under way, because the instance is still being made.
    NoCall,
    /// The grants do not list the host.
    NotListed(String),
    /// The host's name leads to an address that is not public, and that the grants do not list.
    Private(String),
}

impl Denied {
    pub fn host(&self) -> &str {
        match self {
            Self::NoCall => "",
            Self::NotListed(host) | Self::Private(host) => host,
        }
    }

    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCall => "a component has no network while it starts",
            Self::NotListed(_) => "the manifest's [grants] http does not list this host with this port",
            Self::Private(_) => "it has an address that is not public; list that, or its network, in [grants] http too",
        }
    }
}

/// The server that a URL names, if the grants list it.
pub fn server(uri: &Uri, destinations: &Destinations) -> Result<Server, RequestFailure> {
    let secure = uri.scheme_str() == Some("https");
    let invalid = || RequestFailure::Code(Error::HttpRequestUriInvalid);
    // A user's name in front of the host would be sent in the header `host`.
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(invalid)?;
    let host = host(authority.host()).ok_or_else(invalid)?;
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("" | ":") => {
            if secure {
                HTTPS
            } else {
                HTTP
            }
        }
        _ => authority.port_u16().ok_or_else(invalid)?,
    };
    let server = Server { host, port, secure };
    let listed = match &server.host {
        ServerHost::Name(name) => destinations.has_name(name, port),
        ServerHost::Address(address) => destinations.has_address(*address, port),
    };
    if listed { Ok(server) } else { Err(RequestFailure::Denied(Denied::NotListed(server.to_string()))) }
}

/// Reads the host of a URL's authority (RFC 3986, 3.2.2). `None`: it is not a valid host.
fn host(text: &str) -> Option<ServerHost> {
    if let Some(text) = text.strip_prefix('[') {
        let address: Ipv6Addr = text.strip_suffix(']')?.parse().ok()?;
        return Some(ServerHost::Address(address.into()));
    }
    if let Ok(address) = text.parse() {
        return Some(ServerHost::Address(address));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (!name.is_empty() && name.bytes().all(known)).then_some(ServerHost::Name(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use config::grants::Destination;

    use super::*;

    fn destinations() -> Destinations {
        let below = Destination::Below(".example.com".into());
        let network = Destination::Network("10.1.0.0/16".parse().unwrap());
        [(below, None), (network, None)].into_iter().collect()
    }

    fn target(uri: &str) -> Result<Server, RequestFailure> {
        server(&uri.parse().unwrap(), &destinations())
    }

    #[test]
    fn hosts_as_they_may_be_written() {
        for (uri, port, secure) in [
            ("http://API.Example.COM/x", 80, false),
            ("https://api.example.com./", 443, true),
            ("https://api.example.com:80/", 80, true),
            ("http://10.1.2.3/", 80, false),
            ("http://[::ffff:10.1.2.3]:443/", 443, false),
        ] {
            let target = target(uri).unwrap();
            assert_eq!((target.port, target.secure), (port, secure), "{uri}");
        }
        for uri in [
            "http://example.com/",
            "http://api.example.com:8080/",
            "http://api.example.com.evil.net/",
            "http://10.2.0.1/",
            "http://[::1]/",
            // Only old parsers take these for 10.1.2.3. Here they are host names, and no grant lists them.
            "http://10.66051/",
            "http://0x0a010203/",
            "http://167838211/",
        ] {
            assert!(matches!(target(uri), Err(RequestFailure::Denied(Denied::NotListed(_)))), "{uri}");
        }
        for uri in ["http://api.example.com@evil.net/", "http://evil.net@api.example.com/", "http://a:99999@/", "/path"]
        {
            if let Ok(uri) = uri.parse::<Uri>() {
                let refused = server(&uri, &destinations());
                assert!(
                    matches!(refused, Err(RequestFailure::Code(Error::HttpRequestUriInvalid))),
                    "{uri} {refused:?}"
                );
            }
        }
    }
}
