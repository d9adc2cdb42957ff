//! Where a tenant's HTTP requests may go.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::grants::special_use::{covers, is_special};

/// The ports of an entry without one.
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// `[grants] http`.
#[derive(Clone, Debug, Default)]
pub struct Destinations(Vec<(Destination, Port)>);

/// A host that a manifest lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// In lower case, without a dot at the end.
    Name(String),
    /// All names with this end, which is a dot and a name, such as `.example.com`.
    Below(String),
    Network(IpNet),
}

/// The port of an entry. `None`: the default ports.
pub(crate) type Port = Option<u16>;

impl FromIterator<(Destination, Port)> for Destinations {
    fn from_iter<I: IntoIterator<Item = (Destination, Port)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl Destinations {
    /// Whether a request may name this host, in lower case. [`Self::may_lead_to`] checks the addresses that the name
    /// leads to.
    pub fn has_name(&self, name: &str, port: u16) -> bool {
        self.0.iter().any(|(destination, own)| {
            let is_named = match destination {
                Destination::Name(known) => known == name,
                Destination::Below(end) => name.len() > end.len() && name.ends_with(end.as_str()),
                Destination::Network(_) => false,
            };
            is_named && fits(*own, port)
        })
    }

    /// Whether a request may name this address itself.
    pub fn has_address(&self, address: IpAddr, port: u16) -> bool {
        self.networks(address).any(|own| fits(own, port))
    }

    /// Whether an allowed name may lead to this address. Every public address is allowed. Any other must be in a listed
    /// address or network, which has no port or this one.
    pub fn may_lead_to(&self, address: IpAddr, port: u16) -> bool {
        !is_special(address.to_canonical()) || self.networks(address).any(|own| own.is_none_or(|own| own == port))
    }

    /// The ports of the listed networks that have the address. An IPv4 address mapped into IPv6 counts as IPv4.
    fn networks(&self, address: IpAddr) -> impl Iterator<Item = Port> {
        let address = address.to_canonical();
        self.0.iter().filter_map(move |(destination, own)| match destination {
            Destination::Network(network) if covers(network, &address.into()) => Some(*own),
            _ => None,
        })
    }
}

fn fits(own: Port, port: u16) -> bool {
    own.map_or(DEFAULT_PORTS.contains(&port), |own| own == port)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reach() -> Destinations {
        [
            (Destination::Name("api.example.com".into()), None),
            (Destination::Name("api.example.com".into()), Some(8443)),
            (Destination::Below(".example.org".into()), None),
            (Destination::Network("10.1.0.0/16".parse().unwrap()), None),
            (Destination::Network("10.2.0.1/32".parse().unwrap()), Some(8000)),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn names_with_their_ports() {
        let reach = reach();
        for (name, port) in [
            ("api.example.com", 80),
            ("api.example.com", 443),
            ("api.example.com", 8443),
            ("a.example.org", 443),
            ("a.b.example.org", 80),
        ] {
            assert!(reach.has_name(name, port), "{name}:{port}");
        }
        for (name, port) in [
            ("api.example.com", 8080),
            ("example.com", 443),
            ("x.api.example.com", 443),
            ("api.example.com.evil.net", 443),
            ("example.org", 443),
            (".example.org", 443),
            ("evilexample.org", 443),
            ("a.example.org", 8443),
            ("10.1.2.3", 80),
        ] {
            assert!(!reach.has_name(name, port), "{name}:{port}");
        }
    }

    #[test]
    fn addresses_by_number() {
        let reach = reach();
        let has = |address: &str, port| reach.has_address(address.parse().unwrap(), port);
        assert!(has("10.1.2.3", 80) && has("10.1.255.255", 443) && has("10.2.0.1", 8000) && has("::ffff:10.1.2.3", 80));
        assert!(!has("10.1.2.3", 8080) && !has("10.2.0.1", 80) && !has("10.2.0.2", 8000) && !has("8.8.8.8", 80));
        assert!(!has("::10.1.2.3", 80) && !has("64:ff9b::a01:203", 80));
        assert!(!Destinations::default().has_address("8.8.8.8".parse().unwrap(), 80));
    }

    #[test]
    fn a_large_network_has_no_metadata_service() {
        let large: Destinations = [(Destination::Network("169.0.0.0/8".parse().unwrap()), None)].into_iter().collect();
        let address = "169.254.169.254".parse().unwrap();
        assert!(!large.has_address(address, 80) && !large.may_lead_to(address, 80));
        let own: Destinations =
            [(Destination::Network("169.254.169.254/32".parse().unwrap()), None)].into_iter().collect();
        assert!(own.has_address(address, 80) && own.may_lead_to(address, 80));
    }

    #[test]
    fn names_lead_to_what_is_public_or_covered() {
        let reach = reach();
        let may = |address: &str, port| reach.may_lead_to(address.parse().unwrap(), port);
        assert!(may("8.8.8.8", 443) && may("2606:4700::1111", 8443) && may("::ffff:8.8.8.8", 443));
        assert!(may("10.1.2.3", 443) && may("10.1.2.3", 8443) && may("::ffff:10.1.2.3", 443) && may("10.2.0.1", 8000));
        for address in [
            "127.0.0.1",
            "10.2.0.1",
            "10.3.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fd00::1",
            "0.0.0.0",
            "fe80::1",
            "169.254.169.254",
        ] {
            assert!(!may(address, 443), "{address}");
        }
    }
}
