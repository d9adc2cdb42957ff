//! A client's address, also behind proxies.

use std::net::{IpAddr, SocketAddr};

use config::ClientAddress;
use hyper::{HeaderMap, header::HeaderName};
use ipnet::IpNet;

const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// The proxies that may name the client, and where they do.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    pub trusted: Vec<IpNet>,
    pub client_address: ClientAddress,
}

impl Proxies {
    /// Whether a peer is one of the trusted proxies.
    pub fn trust(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&peer.to_canonical()))
    }

    /// The client's address: the peer's, or what a trusted proxy says it is.
    ///
    /// A list is read from its end, up to the first address that is no trusted proxy: the client may have written
    /// everything before it. An entry may have a port. An entry that is not an address ends the search, and the proxy
    /// that wrote it counts as the client. So does one that names the client twice where it can be named once.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trust(peer) {
            return peer;
        }
        match self.client_address {
            ClientAddress::XForwardedFor => self.listed(peer, headers, &X_FORWARDED_FOR, parse),
            ClientAddress::Forwarded => self.listed(peer, headers, &FORWARDED, parse_forwarded),
            ClientAddress::CfConnectingIp => single(headers, &CF_CONNECTING_IP).unwrap_or(peer),
            ClientAddress::XRealIp => single(headers, &X_REAL_IP).unwrap_or(peer),
            ClientAddress::Peer => peer,
        }
    }

    fn listed(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
        name: &HeaderName,
        parse: impl Fn(&str) -> Option<IpAddr>,
    ) -> IpAddr {
        let mut last = peer;
        for value in headers.get_all(name).iter().rev() {
            // What a client has put into quotes before is not looked at, so a comma always ends an entry.
            for hop in value.as_bytes().rsplit(|byte| *byte == b',') {
                match str::from_utf8(hop).ok().and_then(&parse) {
                    Some(hop) if self.trust(hop) => last = hop,
                    Some(client) => return client,
                    None => return last,
                }
            }
        }
        last
    }
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    parse(value.to_str().ok()?)
}

/// The address in an element of `Forwarded` (RFC 7239 section 4). An obfuscated one is none.
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    let mut named = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = named.next().filter(|_| named.next().is_none())?;
    parse(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn parse(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn address(place: ClientAddress, peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let proxies = Proxies { trusted, client_address: place };
        proxies.client_address(peer.parse().unwrap(), &map).to_string()
    }

    /// All headers in which a client could be named.
    const CLAIMS: [(&str, &str); 4] = [
        ("cf-connecting-ip", "1.1.1.1"),
        ("x-real-ip", "2.2.2.2"),
        ("x-forwarded-for", "3.3.3.3"),
        ("forwarded", "for=4.4.4.4"),
    ];

    #[test]
    fn a_stranger_cannot_name_another_address() {
        for place in [ClientAddress::XForwardedFor, ClientAddress::CfConnectingIp, ClientAddress::Forwarded] {
            assert_eq!(address(place, "9.9.9.9", &CLAIMS), "9.9.9.9");
            assert_eq!(address(place, "::ffff:9.9.9.9", &[]), "9.9.9.9");
        }
    }

    #[test]
    fn a_trusted_proxy_names_the_client_in_one_place() {
        for (place, expected) in [
            (ClientAddress::CfConnectingIp, "1.1.1.1"),
            (ClientAddress::XRealIp, "2.2.2.2"),
            (ClientAddress::XForwardedFor, "3.3.3.3"),
            (ClientAddress::Forwarded, "4.4.4.4"),
            (ClientAddress::Peer, "10.1.1.1"),
        ] {
            assert_eq!(address(place, "10.1.1.1", &CLAIMS), expected);
            assert_eq!(address(place, "10.1.1.1", &[]), "10.1.1.1");
        }
        let twice = [("x-real-ip", "2.2.2.2"), ("x-real-ip", "5.5.5.5")];
        assert_eq!(address(ClientAddress::XRealIp, "10.1.1.1", &twice), "10.1.1.1");
        assert_eq!(address(ClientAddress::XRealIp, "10.1.1.1", &[("x-real-ip", "nonsense")]), "10.1.1.1");
    }

    #[test]
    fn a_list_is_read_from_its_end() {
        let listed = |peer, values: &[&'static str]| {
            let headers: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            address(ClientAddress::XForwardedFor, peer, &headers)
        };
        for (values, expected) in [
            (&["6.6.6.6, 3.3.3.3, 10.0.0.7"][..], "3.3.3.3"),
            (&["6.6.6.6", "2001:db8::1"], "2001:db8::1"),
            (&["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
            (&["6.6.6.6, 3.3.3.3:5555"], "3.3.3.3"),
            (&["6.6.6.6, [2001:db8::1]:80"], "2001:db8::1"),
            (&["6.6.6.6, unknown, 10.0.0.7"], "10.0.0.7"),
            (&["6.6.6.6, unknown"], "10.1.1.1"),
            (&["\u{80}\u{ff}, 3.3.3.3"], "3.3.3.3"),
        ] {
            assert_eq!(listed("10.1.1.1", values), expected, "{values:?}");
        }
        assert_eq!(listed("::1", &["3.3.3.3"]), "3.3.3.3");
    }

    #[test]
    fn a_client_cannot_write_itself_into_the_elements_of_proxies() {
        let listed = |values: &[&'static str]| {
            let headers: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
            address(ClientAddress::Forwarded, "10.1.1.1", &headers)
        };
        for (values, expected) in [
            (&["for=6.6.6.6, For=\"[2001:db8::1]:80\";proto=https, for=10.0.0.7"][..], "2001:db8::1"),
            (&["for=6.6.6.6;by=\"", "proto=http;for=3.3.3.3;by=10.0.0.1"], "3.3.3.3"),
            (&["for=\"6.6.6.6, for=3.3.3.3"], "3.3.3.3"),
            (&["for=3.3.3.3, for=_hidden"], "10.1.1.1"),
            (&["for=3.3.3.3, for=unknown, for=10.0.0.7"], "10.0.0.7"),
            (&["for=3.3.3.3;for=6.6.6.6"], "10.1.1.1"),
            (&["proto=https"], "10.1.1.1"),
        ] {
            assert_eq!(listed(values), expected, "{values:?}");
        }
    }
}
