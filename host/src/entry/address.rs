//! A client's address, also behind proxies.

use std::net::{IpAddr, SocketAddr};

use hyper::{HeaderMap, header::HeaderName};
use ipnet::IpNet;

/// The client's address: the peer's, or what a trusted proxy says it is.
///
/// A trusted peer's `cf-connecting-ip` counts first, then its `x-real-ip`, then its `x-forwarded-for`. That list is
/// read from its end, up to the first address that is no trusted proxy: the client may have written everything before
/// it. An entry may have a port. An entry that is not an address ends the search, and the proxy that wrote it counts as
/// the client.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    if !is_trusted(&peer) {
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
                Some(hop) if is_trusted(&hop) => last = hop,
                Some(client) => return client,
                None => return last,
            }
        }
    }
    last
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn parse(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// Names under which proxies and content networks say who the client is.
/// Sources: RFC 7239 (`forwarded`), the documentation of nginx, Envoy, Apache Traffic Server, Akamai, Cloudflare,
/// Fastly, Fly, Google App Engine, Azure Front Door, DigitalOcean, Netlify and Vercel.
const CLAIMS: [&str; 25] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "do-connecting-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "remote-addr",
    "true-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-for",
    "x-nf-client-connection-ip",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-vercel-forwarded-for",
];

/// Removes what a client may have written to pass for another. What else is in `x-forwarded-…`, as the scheme, only a
/// trusted proxy can say.
pub fn remove_claims(headers: &mut HeaderMap, peer: IpAddr, trusted: &[IpNet]) {
    let peer = peer.to_canonical();
    let is_trusted = trusted.iter().any(|net| net.contains(&peer));
    let is_claim = |name: &HeaderName| {
        // Where headers become variables, as in CGI, both characters are one.
        let dashed = name.as_str().replace('_', "-");
        CLAIMS.contains(&&*dashed) || dashed.starts_with("x-forwarded-") && (!is_trusted || dashed != name.as_str())
    };
    let claims: Vec<_> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

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
