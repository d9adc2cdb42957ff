//! Limits how many clients a tenant may have from one address.
//!
//! The clients of an address share one [`ClientSource`]. The number of references to it is their count, so counting
//! costs a client no memory. Where addresses are not limited, all clients share the same source.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use config::TenantLimits;

use crate::{delivery::ClientLimits, fair_pool::network, sync::Mutex};

/// The address that some of a tenant's clients come from. Each of them keeps a reference while it is connected.
pub struct ClientSource {
    pub client_limits: Arc<ClientLimits>,
    /// `None`: clients of any address share this source, for addresses are not limited.
    from: Option<(IpAddr, Arc<SourcesByAddress>)>,
}

/// The sources of a tenant's clients.
pub struct ClientSources {
    uncounted: Arc<ClientSource>,
    addresses: Arc<SourcesByAddress>,
    /// Most clients of one address. Those still in their handshake count.
    max_per_address: AtomicUsize,
}

#[derive(Default)]
struct SourcesByAddress(Mutex<HashMap<IpAddr, Weak<ClientSource>>>);

impl ClientSources {
    pub fn new(client_limits: Arc<ClientLimits>, max_per_address: usize) -> Self {
        let uncounted = Arc::new(ClientSource { client_limits, from: None });
        Self { uncounted, addresses: Arc::default(), max_per_address: AtomicUsize::new(max_per_address) }
    }

    /// Changes the limit. Clients that are connected stay. Those that came while there was no limit are never counted.
    pub fn set(&self, max_per_address: usize) {
        self.max_per_address.store(max_per_address, Ordering::Relaxed);
    }

    /// The source of a client that comes from `address`, to be kept for as long as it is connected. `None`: the address
    /// has as many clients as it may.
    pub fn source_for(&self, address: IpAddr) -> Option<Arc<ClientSource>> {
        let max_per_address = self.max_per_address.load(Ordering::Relaxed);
        if max_per_address >= TenantLimits::MOST.clients_per_address {
            return Some(Arc::clone(&self.uncounted));
        }
        let address = network(address);
        let (source, has_room) = self.find_or_insert(address, max_per_address);
        has_room.then_some(source)
    }

    /// The source of an address, and whether it has room for one more client. Without room the source is returned as
    /// well, so that it is dropped after the lock is released: this may have become the last reference, and dropping
    /// the last one takes the lock ([`ClientSource::drop`]).
    fn find_or_insert(&self, address: IpAddr, max_per_address: usize) -> (Arc<ClientSource>, bool) {
        let mut addresses = self.addresses.0.lock();
        if let Some(source) = addresses.get(&address).and_then(Weak::upgrade) {
            // One reference is held here and not by a client.
            let has_room = Arc::strong_count(&source) - 1 < max_per_address;
            return (source, has_room);
        }
        let from = Some((address, Arc::clone(&self.addresses)));
        let source = Arc::new(ClientSource { client_limits: Arc::clone(&self.uncounted.client_limits), from });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Account, metrics::Metrics, usage::Usage};

    fn sources(max_per_address: usize) -> ClientSources {
        let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
        ClientSources::new(
            Arc::new(ClientLimits::new(
                metrics,
                &TenantLimits::default(),
                Arc::default(),
                Arc::default(),
                Account::of_test(),
                Usage::of_test(),
            )),
            max_per_address,
        )
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_limit_of_clients_until_some_leave() {
        let sources = sources(2);
        let source_for = |text| sources.source_for(address(text));
        let (first, second) = (source_for("192.0.2.1"), source_for("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(source_for("192.0.2.1").is_none());
        let other = source_for("192.0.2.2");
        assert!(other.is_some());
        drop(first);
        let third = source_for("192.0.2.1");
        assert!(third.is_some() && source_for("192.0.2.1").is_none());
        drop((second, third, other));
        assert!(sources.addresses.0.lock().is_empty(), "an address without clients is still there");
    }

    /// A client finds no room, and the last one of its address leaves meanwhile. Dropping the source must not deadlock.
    #[test]
    fn a_refused_client_may_drop_the_last_reference() {
        let sources = sources(1);
        let first = sources.source_for(address("192.0.2.1")).unwrap();
        let (refused, has_room) = sources.find_or_insert(address("192.0.2.1"), 1);
        assert!(!has_room);
        drop(first);
        drop(refused);
        assert!(sources.addresses.0.lock().is_empty());
        // The same as a race: on two threads, many clients come and go.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..20_000).for_each(|_| drop(sources.source_for(address("192.0.2.1")))));
            }
        });
        assert!(sources.addresses.0.lock().is_empty());
    }

    #[test]
    fn addresses_of_ipv6_are_one_within_their_network() {
        let sources = sources(1);
        let _first = sources.source_for(address("2001:db8:1:2:3::1")).unwrap();
        assert!(sources.source_for(address("2001:db8:1:2:ffff:ffff:ffff:ffff")).is_none());
        assert!(sources.source_for(address("2001:db8:1:3::1")).is_some());
    }

    #[test]
    fn without_a_limit_nobody_is_counted() {
        let sources = sources(TenantLimits::MOST.clients_per_address);
        let first = sources.source_for(address("192.0.2.1")).unwrap();
        assert!(Arc::ptr_eq(&first, &sources.source_for(address("2001:db8::1")).unwrap()));
        assert!(sources.addresses.0.lock().is_empty());
        // Once turned on, the limit counts the clients that come from then on.
        sources.set(1);
        let _second = sources.source_for(address("192.0.2.1")).unwrap();
        assert!(sources.source_for(address("192.0.2.1")).is_none());
    }
}
