//! Addresses that are not on the public Internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Networks that are not public: the IANA registries of special-purpose addresses, multicast, and reserved addresses.
/// In IPv6 that is everything outside 2000::/3, the only block that global addresses are given from, and the special
/// networks within it. So every form of an IPv4 address within an IPv6 address is here too.
const SPECIAL: [IpNet; 22] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    METADATA_AZURE,
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // Multicast, then reserved with broadcast.
    v4([224, 0, 0, 0], 3),
    // Outside 2000::/3: loopback, mapped and translated IPv4, unique local, link local, multicast.
    v6([0, 0], 3),
    v6([0x4000, 0], 2),
    v6([0x8000, 0], 1),
    // Protocol assignments, Teredo among them; documentation; 6to4; documentation again.
    v6([0x2001, 0], 23),
    v6([0x2001, 0xdb8], 32),
    v6([0x2002, 0], 16),
    v6([0x3fff, 0], 20),
];

/// Azure's platform service, which is at a public address.
const METADATA_AZURE: IpNet = v4([168, 63, 129, 16], 32);

/// Addresses that a cloud's metadata service has, and all link-local ones, where most clouds have theirs. An answer
/// from there often has the machine's own credentials. So an entry for a larger network does not count for them.
const GUARDED: [IpNet; 10] = [
    v4([169, 254, 0, 0], 16),
    METADATA_AZURE,
    // Alibaba, Oracle.
    v4([100, 100, 100, 200], 32),
    v4([192, 0, 0, 192], 32),
    v6([0xfe80, 0], 10),
    // AWS, Google.
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128)),
    // IPv4's link-local addresses within IPv6: translated (RFC 6052), compatible (RFC 4291), 6to4 (RFC 3056).
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0), 112)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0xa9fe, 0), 112)),
    v6([0x2002, 0xa9fe], 32),
];

/// Whether an entry for a network counts for this address, or this smaller network.
pub(super) fn covers(listed: &IpNet, network: &IpNet) -> bool {
    listed.contains(network)
        && GUARDED.iter().filter(|guarded| guarded.contains(network)).all(|guarded| guarded.contains(listed))
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6([a, b]: [u16; 2], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix))
}

/// Whether an address is not public. It must not be an IPv4 address mapped into IPv6.
pub(super) fn is_special(address: IpAddr) -> bool {
    SPECIAL.iter().any(|network| network.contains(&address))
}

/// Whether any address of a network is not public.
pub(crate) fn overlaps_special(network: &IpNet) -> bool {
    SPECIAL.iter().any(|special| special.contains(network) || network.contains(special))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_special() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_special(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "3ffe::1",
        ] {
            assert!(!is_special(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_large_network_does_not_cover_link_local_and_metadata_addresses() {
        let covered = |listed: &str, network: &str| covers(&listed.parse().unwrap(), &network.parse().unwrap());
        for (listed, network) in [
            ("0.0.0.0/0", "10.0.0.1/32"),
            ("169.0.0.0/8", "169.253.0.1/32"),
            ("169.254.0.0/16", "169.254.169.254/32"),
            ("169.254.169.254/32", "169.254.169.254/32"),
            ("fe80::/10", "fe80::1/128"),
            ("fd00::/8", "fd00::1/128"),
            ("100.100.100.200/32", "100.100.100.200/32"),
            ("169.0.0.0/8", "169.0.0.0/8"),
        ] {
            assert!(covered(listed, network), "{listed} {network}");
        }
        for (listed, network) in [
            ("0.0.0.0/0", "169.254.169.254/32"),
            ("169.0.0.0/8", "169.254.0.0/16"),
            ("::/0", "fe80::1/128"),
            ("fd00::/8", "fd00:ec2::254/128"),
            ("fd20::/16", "fd20:ce::254/128"),
            ("100.64.0.0/10", "100.100.100.200/32"),
            ("192.0.0.0/24", "192.0.0.192/32"),
            ("168.63.0.0/16", "168.63.129.16/32"),
            ("64:ff9b::/96", "64:ff9b::a9fe:a9fe/128"),
            ("2002::/16", "2002:a9fe:a9fe::1/128"),
            ("10.0.0.0/8", "11.0.0.1/32"),
        ] {
            assert!(!covered(listed, network), "{listed} {network}");
        }
    }

    #[test]
    fn a_network_is_special_if_any_of_it_is() {
        for network in ["10.1.0.0/16", "0.0.0.0/0", "8.0.0.0/6", "127.0.0.1/32", "::/0", "fd00::/8", "2000::/3"] {
            assert!(overlaps_special(&network.parse().unwrap()), "{network}");
        }
        for network in ["8.8.8.0/24", "1.1.1.1/32", "2606:4700::/32"] {
            assert!(!overlaps_special(&network.parse().unwrap()), "{network}");
        }
    }
}
