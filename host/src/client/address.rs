//! Who a client is, behind proxies or not.

use std::net::IpAddr;

use hyper::HeaderMap;
use ipnet::IpNet;

/// The client's address: the peer's, or what a trusted proxy says it is.
///
/// A trusted peer's `cf-connecting-ip` counts first, then `x-real-ip`, then `x-forwarded-for`: its last address that is
/// not itself a trusted proxy's, since whatever stands before it was written by the client. What is no address is passed
/// over.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    if !is_trusted(&peer) {
        return peer;
    }
    let single = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<IpAddr>().ok();
    if let Some(address) = single("cf-connecting-ip").or_else(|| single("x-real-ip")) {
        return address.to_canonical();
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<IpAddr> = forwarded
        .flat_map(|value| value.split(','))
        .filter_map(|hop| hop.trim().parse::<IpAddr>().ok())
        .map(|hop| hop.to_canonical())
        .collect();
    hops.iter().rev().find(|hop| !is_trusted(hop)).or(hops.first()).copied().unwrap_or(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

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
    }
}
