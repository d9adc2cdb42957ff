//! A client's address, also behind proxies.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use ipnet::IpNet;

/// The client's address: the peer's, or what a trusted proxy says it is.
///
/// A trusted peer's `cf-connecting-ip` counts first, then its `x-real-ip`, then its `x-forwarded-for`. That list is
/// read from its end, up to the first address that is no trusted proxy: the client may have written everything before
/// it. An entry may have a port. An entry that is not an address ends the search, and the proxy that wrote it counts as
/// the client.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let single = |name: &str| parse(headers.get(name)?.to_str().ok()?);
    if let Some(address) = single("cf-connecting-ip").or_else(|| single("x-real-ip")) {
        return address;
    }
    let mut last = peer;
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        for hop in value.to_str().unwrap_or_default().rsplit(',') {
            match parse(hop) {
                Some(hop) if is_trusted(hop, trusted) => last = hop,
                Some(client) => return client,
                None => return last,
            }
        }
    }
    last
}

/// Whether a peer is one of the trusted proxies.
pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&peer.to_canonical()))
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
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn address(peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        client_address(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn a_stranger_cannot_name_another_address() {
        assert_eq!(address("9.9.9.9", &[("x-real-ip", "1.2.3.4"), ("x-forwarded-for", "1.2.3.4")]), "9.9.9.9");
        assert_eq!(address("::ffff:9.9.9.9", &[]), "9.9.9.9");
    }

    #[test]
    fn a_trusted_proxy_names_the_client() {
        assert_eq!(address("10.1.1.1", &[("cf-connecting-ip", "1.1.1.1"), ("x-real-ip", "2.2.2.2")]), "1.1.1.1");
        assert_eq!(address("10.1.1.1", &[("x-real-ip", "2.2.2.2"), ("x-forwarded-for", "3.3.3.3")]), "2.2.2.2");
        assert_eq!(address("::1", &[("x-forwarded-for", "6.6.6.6, 3.3.3.3, 10.0.0.7")]), "3.3.3.3");
        assert_eq!(
            address("10.1.1.1", &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "2001:db8::1")]),
            "2001:db8::1"
        );
        assert_eq!(address("10.1.1.1", &[("x-forwarded-for", "10.0.0.9, 10.0.0.7")]), "10.0.0.9");
        assert_eq!(address("10.1.1.1", &[("x-real-ip", "nonsense")]), "10.1.1.1");
        assert_eq!(address("10.1.1.1", &[("x-forwarded-for", "6.6.6.6, 3.3.3.3:5555")]), "3.3.3.3");
        assert_eq!(address("10.1.1.1", &[("x-forwarded-for", "6.6.6.6, [2001:db8::1]:80")]), "2001:db8::1");
        assert_eq!(address("10.1.1.1", &[("x-forwarded-for", "6.6.6.6, unknown, 10.0.0.7")]), "10.0.0.7");
        assert_eq!(address("10.1.1.1", &[("x-forwarded-for", "6.6.6.6, unknown")]), "10.1.1.1");
    }
}
