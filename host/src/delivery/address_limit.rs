//! Limits how many clients a tenant may have from one address.
//!
//! The clients of an address share one [`ClientSource`]. The number of references to it is their count, so counting
//! costs a client no memory. Where addresses are not limited, all clients share the same source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use config::TenantLimits;

use crate::{delivery::ClientLimits, sync::Mutex};

/// The part of an IPv6 address that is counted. A household or a machine usually gets a whole /64.
const NETWORK: u128 = !(u64::MAX as u128);

/// The address that some of a tenant's clients come from. Each of them keeps a reference while it is connected.
pub struct ClientSource {
    pub client_limits: Arc<ClientLimits>,
    /// `None`: clients of any address share this source, for addresses are not limited.
    from: Option<(IpAddr, Arc<Addresses>)>,
}

/// The sources of a tenant's clients.
pub struct ClientSources {
    anywhere: Arc<ClientSource>,
    addresses: Arc<Addresses>,
    /// Most clients of one address. Those still in their handshake count.
    most: AtomicUsize,
}

#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, Weak<ClientSource>>>);

impl ClientSources {
    pub fn new(client_limits: Arc<ClientLimits>, most: usize) -> Self {
        let anywhere = Arc::new(ClientSource { client_limits, from: None });
        Self { anywhere, addresses: Arc::default(), most: AtomicUsize::new(most) }
    }

    /// Changes the limit. Clients that are connected stay. Those that came while there was no limit are never counted.
    pub fn set(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// The source of a client that comes from `address`, to be kept for as long as it is connected. `None`: the address
    /// has as many clients as it may.
    pub fn of(&self, address: IpAddr) -> Option<Arc<ClientSource>> {
        let most = self.most.load(Ordering::Relaxed);
        if most >= TenantLimits::MOST.clients_per_address {
            return Some(Arc::clone(&self.anywhere));
        }
        let address = network(address);
        let (source, has_room) = self.look(address, most);
        has_room.then_some(source)
    }

    /// The source of an address, and whether it has room for one more client. Without room the source is returned as
    /// well, so that it is dropped after the lock is released: this may have become the last reference, and dropping
    /// the last one takes the lock ([`ClientSource::drop`]).
    fn look(&self, address: IpAddr, most: usize) -> (Arc<ClientSource>, bool) {
        let mut addresses = self.addresses.0.lock();
        if let Some(source) = addresses.get(&address).and_then(Weak::upgrade) {
            // One reference is held here and not by a client.
            let has_room = Arc::strong_count(&source) - 1 < most;
            return (source, has_room);
        }
        let from = Some((address, Arc::clone(&self.addresses)));
        let source = Arc::new(ClientSource { client_limits: Arc::clone(&self.anywhere.client_limits), from });
        addresses.insert(address, Arc::downgrade(&source));
        (source, true)
    }
}

impl Drop for ClientSource {
    fn drop(&mut self) {
        let Some((address, addresses)) = &self.from else { return };
        let mut addresses = addresses.0.lock();
        // Another source may have been made for this address by now.
        if addresses.get(address).is_some_and(|source| source.strong_count() == 0) {
            addresses.remove(address);
        }
    }
}

/// An address in the form in which it is counted: IPv4 whole, IPv6 by its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn sources(most: usize) -> ClientSources {
        let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
        ClientSources::new(
            Arc::new(ClientLimits::new(metrics, &TenantLimits::default(), Arc::default(), Arc::default())),
            most,
        )
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_until_they_go() {
        let sources = sources(2);
        let of = |text| sources.of(address(text));
        let (first, second) = (of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(of("192.0.2.1").is_none());
        let other = of("192.0.2.2");
        assert!(other.is_some());
        drop(first);
        let third = of("192.0.2.1");
        assert!(third.is_some() && of("192.0.2.1").is_none());
        drop((second, third, other));
        assert!(sources.addresses.0.lock().is_empty(), "an address without clients is still there");
    }

    /// A client finds no room, and the last one of its address leaves meanwhile. Dropping the source must not deadlock.
    #[test]
    fn who_finds_no_room_may_be_the_last_to_go() {
        let sources = sources(1);
        let first = sources.of(address("192.0.2.1")).unwrap();
        let (refused, has_room) = sources.look(address("192.0.2.1"), 1);
        assert!(!has_room);
        drop(first);
        drop(refused);
        assert!(sources.addresses.0.lock().is_empty());
        // The same as a race: on two threads, many clients come and go.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000).for_each(|_| drop(sources.of(address("192.0.2.1")))));
            }
        });
        assert!(sources.addresses.0.lock().is_empty());
    }

    #[test]
    fn addresses_of_ipv6_are_one_within_their_network() {
        let sources = sources(1);
        let _first = sources.of(address("2001:db8:1:2:3::1")).unwrap();
        assert!(sources.of(address("2001:db8:1:2:ffff:ffff:ffff:ffff")).is_none());
        assert!(sources.of(address("2001:db8:1:3::1")).is_some());
    }

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let sources = sources(TenantLimits::MOST.clients_per_address);
        let first = sources.of(address("192.0.2.1")).unwrap();
        assert!(Arc::ptr_eq(&first, &sources.of(address("2001:db8::1")).unwrap()));
        assert!(sources.addresses.0.lock().is_empty());
        // Once turned on, the limit counts the clients that come from then on.
        sources.set(1);
        let _second = sources.of(address("192.0.2.1")).unwrap();
        assert!(sources.of(address("192.0.2.1")).is_none());
    }
}
