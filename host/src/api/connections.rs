//! The API's connections: how many there may be, and which make room.
//!
//! A connection's place is its address's while it is idle, and its tenant's while it has a request. A newcomer without
//! room takes the place of a connection that has been idle for longest: one of its own address, or any if none is free.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ipnet::IpNet;
use tokio::sync::Notify;

use crate::{
    entry::is_trusted,
    fair_pool::{FairPlace, FairPool, Most, Sharer},
    sync::Mutex,
};

pub struct Connections {
    places: Arc<FairPool<Sharer>>,
    /// Those without a request under way, the one that has been idle for longest first.
    idle: Mutex<BTreeMap<u64, Arc<Held>>>,
    next: AtomicU64,
}

/// One connection's place.
pub struct Connection {
    all: Arc<Connections>,
    held: Arc<Held>,
    address: IpAddr,
    most: Most,
    /// Its number among the idle ones.
    idle_as: AtomicU64,
}

struct Held {
    place: Mutex<Option<FairPlace<Sharer>>>,
    /// Told when another has taken the place.
    evicted: Notify,
}

impl Connections {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: FairPool::new(most), idle: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// Takes a place for a connection. `None`: there is none.
    pub fn admit(self: &Arc<Self>, address: IpAddr, trusted_proxies: &[IpNet]) -> Option<Connection> {
        let most = if is_trusted(address, trusted_proxies) { Most::All } else { Most::Own(usize::MAX) };
        let sharer = Sharer::address(address);
        let place = self.places.take(sharer.clone(), most).or_else(|| {
            let is_full = self.places.free() == 0;
            let evicted = self.evict(Some(&sharer)).or_else(|| is_full.then(|| self.evict(None)).flatten());
            evicted?.pass_to(sharer, most)
        })?;
        let held = Arc::new(Held { place: Mutex::new(Some(place)), evicted: Notify::new() });
        let connection = Connection { all: Arc::clone(self), held, address, most, idle_as: AtomicU64::new(0) };
        connection.note_idle();
        Some(connection)
    }

    /// Takes the place of the connection that has been idle for longest. `of`: only if it is this one's.
    fn evict(&self, of: Option<&Sharer>) -> Option<FairPlace<Sharer>> {
        let mut idle = self.idle.lock();
        let is_of = |held: &Held| of.is_none_or(|of| held.place.lock().as_ref().is_some_and(|place| place.by() == of));
        let number = *idle.iter().find(|(_, held)| is_of(held))?.0;
        let held = idle.remove(&number)?;
        held.evicted.notify_one();
        held.place.lock().take()
    }
}

impl Connection {
    /// Notes that a request of this tenant has come. `false`: the tenant has too many under way.
    pub fn begin(&self, tenant: &Arc<str>) -> bool {
        self.all.idle.lock().remove(&self.idle_as.load(Ordering::Relaxed));
        let sharer = Sharer::Tenant(Arc::clone(tenant));
        let own = self.held.place.lock().take();
        let place = match own {
            Some(own) => own.pass_to(sharer, Most::Own(usize::MAX)),
            None => self.all.places.take(sharer, Most::Own(usize::MAX)),
        };
        let is_taken = place.is_some();
        *self.held.place.lock() = place;
        is_taken
    }

    /// Notes that no request is under way. The connection goes on even if there is no place for it now: it is the first
    /// that makes room.
    pub fn end(&self) {
        let sharer = Sharer::address(self.address);
        let own = self.held.place.lock().take();
        *self.held.place.lock() = match own {
            Some(own) => own.pass_to(sharer, self.most),
            None => self.all.places.take(sharer, self.most),
        };
        self.note_idle();
    }

    fn note_idle(&self) {
        let number = self.all.next.fetch_add(1, Ordering::Relaxed);
        self.idle_as.store(number, Ordering::Relaxed);
        self.all.idle.lock().insert(number, Arc::clone(&self.held));
    }

    /// Returns when another has taken its place.
    pub async fn evicted(&self) {
        self.held.evicted.notified().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.idle.lock().remove(&self.idle_as.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn an_address_that_has_enough_loses_its_oldest_idle_connection_and_no_one_elses() {
        let all = Connections::new(10);
        let admit = |last| all.admit(address(last), &[]);
        let first: Vec<_> = (0..8).map(|_| admit(1).unwrap()).collect();
        let other = admit(2).unwrap();
        // Its first has a request, so the second is the one that has been idle for longest.
        assert!(first[0].begin(&"t".into()));
        let next = admit(1).unwrap();
        assert!(first[1].evicted().now_or_never().is_some());
        for still in first.iter().filter(|still| !std::ptr::eq(*still, &raw const first[1])).chain([&other, &next]) {
            assert!(still.evicted().now_or_never().is_none());
        }
        assert_eq!(all.places.free(), 1);
    }

    #[test]
    fn a_newcomer_is_served_even_if_all_are_taken_unless_all_have_requests() {
        let all = Connections::new(4);
        let trusted: [IpNet; 1] = ["192.0.2.9/32".parse().unwrap()];
        let proxied: Vec<_> = (0..4).map(|_| all.admit(address(9), &trusted).unwrap()).collect();
        assert_eq!(all.places.free(), 0);
        let one = all.admit(address(1), &[]).unwrap();
        assert!(proxied[0].evicted().now_or_never().is_some());
        for busy in proxied[1..].iter().chain([&one]) {
            // A proxy's requests are those of many tenants.
            busy.begin(&format!("{:p}", busy).into());
        }
        assert!(all.admit(address(2), &[]).is_none());
        one.end();
        assert!(all.admit(address(2), &[]).is_some());
        drop((proxied, one));
        assert_eq!(all.places.free(), 4);
        assert!(all.idle.lock().is_empty());
    }
}
