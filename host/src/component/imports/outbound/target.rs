//! Where a request goes, and whether the grants allow it.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use config::grants::Destinations;
use hyper::Uri;
use wasmtime_wasi_http::Error;

use crate::component::imports::outbound::RequestFailure;

/// The schemes' default ports.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// A server that the grants list.
#[derive(Debug)]
pub struct Target {
    pub host: TargetHost,
    pub port: u16,
    pub secure: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum TargetHost {
    /// In lower case, without a dot at the end.
    Name(String),
    Address(IpAddr),
}

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

impl Target {
    /// The server that a URL names, if the grants list it.
    pub fn from_uri(uri: &Uri, destinations: &Destinations) -> Result<Self, RequestFailure> {
        let secure = uri.scheme_str() == Some("https");
        let invalid = || RequestFailure::Code(Error::HttpRequestUriInvalid);
        // A user's name in front of the host would be sent in the header `host`.
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(invalid)?;
        let host = TargetHost::parse(authority.host()).ok_or_else(invalid)?;
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
        let target = Self { host, port, secure };
        let listed = match &target.host {
            TargetHost::Name(name) => destinations.has_name(name, port),
            TargetHost::Address(address) => destinations.has_address(*address, port),
        };
        if listed { Ok(target) } else { Err(RequestFailure::Denied(Denied::NotListed(target.shown()))) }
    }

    /// The addresses to connect to: all that the name leads to, if the grants allow every one of them. `answers` is
    /// awaited only for a name.
    pub async fn addresses(
        &self,
        destinations: &Destinations,
        answers: impl Future<Output = io::Result<Vec<IpAddr>>>,
    ) -> Result<Vec<SocketAddr>, RequestFailure> {
        if let TargetHost::Address(address) = self.host {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let answers = answers.await.map_err(|_| dns_error("the name was not found"))?;
        if answers.is_empty() {
            return Err(dns_error("the name has no address"));
        }
        if answers.iter().any(|address| !destinations.may_lead_to(*address, self.port)) {
            return Err(RequestFailure::Denied(Denied::Private(self.shown())));
        }
        Ok(answers.into_iter().map(|address| SocketAddr::new(address, self.port)).collect())
    }

    fn shown(&self) -> String {
        match &self.host {
            TargetHost::Name(name) => format!("{name}:{}", self.port),
            TargetHost::Address(address) => SocketAddr::new(*address, self.port).to_string(),
        }
    }
}

fn dns_error(why: &str) -> RequestFailure {
    RequestFailure::Code(Error::DnsError { rcode: Some(why.into()), info_code: None })
}

impl TargetHost {
    /// Reads the host of a URL's authority (RFC 3986, 3.2.2). `None`: it is not a valid host.
    fn parse(text: &str) -> Option<Self> {
        if let Some(text) = text.strip_prefix('[') {
            let address: Ipv6Addr = text.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (!name.is_empty() && name.bytes().all(known)).then_some(Self::Name(name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::ready;

    use config::grants::Destination;

    use super::*;

    fn destinations() -> Destinations {
        let below = Destination::Below(".example.com".into());
        let network = Destination::Network("10.1.0.0/16".parse().unwrap());
        [(below, None), (network, None)].into_iter().collect()
    }

    fn target(uri: &str) -> Result<Target, RequestFailure> {
        Target::from_uri(&uri.parse().unwrap(), &destinations())
    }

    /// The addresses for a name that leads to `answers`.
    async fn led_to(answers: &[&str]) -> Result<Vec<SocketAddr>, RequestFailure> {
        let answers = answers.iter().map(|address| address.parse().unwrap()).collect();
        target("https://api.example.com/").unwrap().addresses(&destinations(), ready(Ok(answers))).await
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
                let refused = Target::from_uri(&uri, &destinations());
                assert!(
                    matches!(refused, Err(RequestFailure::Code(Error::HttpRequestUriInvalid))),
                    "{uri} {refused:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn every_answer_of_a_name_server_is_looked_at() {
        let public = led_to(&["93.184.216.34", "2606:4700::1111"]).await.unwrap();
        assert_eq!(public, ["93.184.216.34:443".parse().unwrap(), "[2606:4700::1111]:443".parse().unwrap()]);
        assert_eq!(led_to(&["10.1.2.3", "8.8.8.8"]).await.unwrap().len(), 2, "covered by a network of the list");
        for answers in [
            &["127.0.0.1"][..],
            &["8.8.8.8", "127.0.0.1"],
            &["127.0.0.1", "8.8.8.8"],
            &["8.8.8.8", "::ffff:169.254.169.254"],
            &["10.2.0.1"],
            &["fd00::1", "2606:4700::1111"],
            &["0.0.0.0"],
        ] {
            let denied = led_to(answers).await;
            let shown = "api.example.com:443".to_owned();
            assert!(
                matches!(&denied, Err(RequestFailure::Denied(Denied::Private(host))) if *host == shown),
                "{answers:?}"
            );
        }
        assert!(matches!(led_to(&[]).await, Err(RequestFailure::Code(Error::DnsError { .. }))));
    }

    #[tokio::test]
    async fn a_name_server_is_not_asked_for_addresses() {
        let never = async { panic!("it was asked") };
        let addresses = target("http://10.1.2.3/").unwrap().addresses(&destinations(), never).await.unwrap();
        assert_eq!(addresses, ["10.1.2.3:80".parse().unwrap()]);
    }
}
