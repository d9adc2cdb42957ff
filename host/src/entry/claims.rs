//! Headers in which a client can say that it is another.

use std::net::IpAddr;

use hyper::{HeaderMap, header::HeaderName};

use crate::entry::address::Proxies;

/// Names under which proxies, content networks and application servers say who the client is, besides those with one of
/// [`ENDINGS`]. Sources: RFC 7239 (`forwarded`), and the documentation of nginx, Envoy, Cloudflare, CloudFront, Google
/// App Engine, Azure Front Door, Netlify, Vercel and WebLogic.
const CLAIMS: [&str; 14] = [
    "cdn-src-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "cloudfront-viewer-address",
    "forwarded",
    "forwarded-for",
    "x-azure-socketip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-for",
    "x-original-for",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-vercel-forwarded-for",
];
/// How other such names end: `true-client-ip`, `x-azure-clientip`, `cf-connecting-ip`, `x-real-ip`, `x-remote-addr`.
const ENDINGS: [&str; 8] =
    ["client-ip", "clientip", "connecting-ip", "connection-ip", "real-ip", "remote-addr", "remote-ip", "user-ip"];
/// What a proxy says of the request, and a guest may believe if the proxy is trusted.
const OF_PROXIES: [&str; 4] = ["x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto"];
/// How all these begin, and more.
const PREFIX: &str = "x-forwarded-";

/// Removes the headers in which a client may have written that it is another. What a proxy says of the request itself,
/// as its scheme, stays if it comes from a trusted one.
pub fn remove_claims(headers: &mut HeaderMap, peer: IpAddr, proxies: &Proxies) {
    let is_trusted = proxies.trust(peer);
    let claims: Vec<_> = headers.keys().filter(|name| is_claim(name, is_trusted)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

fn is_claim(name: &HeaderName, by_trusted_proxy: bool) -> bool {
    let name = name.as_str();
    if by_trusted_proxy && OF_PROXIES.contains(&name) {
        return false;
    }
    // Where headers become variables, as in CGI, all these characters are one, and the names begin with `HTTP_`.
    let dashed = name.replace(|character: char| !character.is_ascii_alphanumeric(), "-");
    let dashed = dashed.strip_prefix("http-").unwrap_or(&dashed);
    dashed.starts_with(PREFIX) || CLAIMS.contains(&dashed) || ENDINGS.iter().any(|ending| dashed.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sends_them_claims_are_removed() {
        let more =
            ["true-client-ip", "x-azure-clientip", "x-real-ip", "x-nf-client-connection-ip", "x-appengine-user-ip"];
        for name in CLAIMS.iter().chain(&more) {
            for name in [(*name).to_owned(), name.replace('-', "_"), name.replace('-', "."), format!("HTTP_{name}")] {
                let name: HeaderName = name.parse().unwrap();
                assert!(is_claim(&name, true) && is_claim(&name, false), "{name}");
            }
        }
        for name in ["x-forwarded-user", "x-forwarded_proto", "x_forwarded_host"] {
            assert!(is_claim(&HeaderName::from_static(name), true), "{name}");
        }
    }

    #[test]
    fn what_a_trusted_proxy_says_of_the_request_stays() {
        for name in OF_PROXIES {
            let name = HeaderName::from_static(name);
            assert!(is_claim(&name, false) && !is_claim(&name, true), "{name}");
        }
        for name in ["host", "user-agent", "x-request-id", "client", "x-recipe"] {
            assert!(!is_claim(&HeaderName::from_static(name), false), "{name}");
        }
    }
}
