//! A listener's connections: how many there may be, and which make room.
//!
//! A connection's place is its address's while it is idle, and its tenant's while it has a request, until the answer
//! has been sent. A newcomer without room takes the place of the connection that has been idle for longest: one of its
//! own address, or if no place is free any one. That connection is closed.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    fair_pool::{FairPlace, FairPool, Most, Sharer, network},
    sync::Mutex,
};

pub struct Connections {
    places: Arc<FairPool<Sharer>>,
    idle: Mutex<Idle>,
}

/// Connections without a request under way.
#[derive(Default)]
struct Idle {
    next: u64,
    /// Their addresses, the one that has been idle for longest first.
    all: BTreeMap<u64, IpAddr>,
    by_address: HashMap<IpAddr, BTreeMap<u64, Arc<Held>>>,
}

/// One connection's place.
pub struct Connection {
    all: Arc<Connections>,
    held: Arc<Held>,
    address: IpAddr,
    most: Most,
    /// Requests under way. A client may send the next one before it has the answer.
    requests: AtomicUsize,
}

struct Held {
    place: Mutex<Option<FairPlace<Sharer>>>,
    /// Its number among the idle ones.
    idle_as: Mutex<Option<u64>>,
    /// Told when another has taken the place.
    evicted: Notify,
}

impl Connections {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: FairPool::new(most), idle: Mutex::default() })
    }

    /// Takes a place for a connection from an address, which may have this many. `None`: there is none.
    pub fn admit(self: &Arc<Self>, address: IpAddr, most: Most) -> Option<Connection> {
        let address = network(address);
        let place = self.places.take(Sharer::Address(address), most).or_else(|| {
            let is_full = self.places.free() == 0;
            let evicted = self.evict(Some(address)).or_else(|| is_full.then(|| self.evict(None)).flatten());
            evicted?.pass_to(Sharer::Address(address), most, 0)
        })?;
        let held = Held { place: Mutex::new(Some(place)), idle_as: Mutex::default(), evicted: Notify::new() };
        let all = Arc::clone(self);
        let connection = Connection { all, held: Arc::new(held), address, most, requests: AtomicUsize::new(0) };
        connection.note_idle();
        Some(connection)
    }

    /// Takes the place of the connection that has been idle for longest. `of`: only if it is of this address.
    fn evict(&self, of: Option<IpAddr>) -> Option<FairPlace<Sharer>> {
        let held = {
            let mut idle = self.idle.lock();
            let address = match of {
                Some(address) => address,
                None => *idle.all.first_key_value()?.1,
            };
            let number = *idle.by_address.get(&address)?.first_key_value()?.0;
            idle.remove(number)?
        };
        *held.idle_as.lock() = None;
        held.evicted.notify_one();
        held.place.lock().take()
    }
}

impl Idle {
    fn insert(&mut self, address: IpAddr, held: Arc<Held>) -> u64 {
        self.next += 1;
        self.all.insert(self.next, address);
        self.by_address.entry(address).or_default().insert(self.next, held);
        self.next
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Held>> {
        let address = self.all.remove(&number)?;
        let of = self.by_address.get_mut(&address)?;
        let held = of.remove(&number);
        if of.is_empty() {
            self.by_address.remove(&address);
        }
        held
    }
}

impl Connection {
    /// Notes that a request has come, which ends when what is returned is dropped.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.note_busy();
        UnderWay(Arc::clone(self))
    }

    /// Makes the place that of a tenant, whom the request is for. `false`: the tenant has too many under way.
    pub fn is_for(&self, tenant: &Arc<str>) -> bool {
        let Some(own) = self.held.place.lock().take() else {
            // Another has just taken it. This connection ends with the answer.
            return true;
        };
        // Idle connections would make room.
        let idle = self.all.idle.lock().all.len();
        let place = own.pass_to(Sharer::Tenant(Arc::clone(tenant)), Most::Own(usize::MAX), idle);
        let is_taken = place.is_some();
        *self.held.place.lock() = place;
        is_taken
    }

    /// Whether a request is under way.
    pub fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// Returns when another has taken its place.
    pub async fn evicted(&self) {
        self.held.evicted.notified().await;
    }

    fn end(&self) {
        if self.requests.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let sharer = Sharer::Address(self.address);
        let own = self.held.place.lock().take();
        let place = match own {
            Some(own) => own.pass_to(sharer, self.most, 0),
            None => self.all.places.take(sharer, self.most),
        };
        let is_taken = place.is_some();
        *self.held.place.lock() = place;
        if is_taken {
            self.note_idle();
        } else {
            // Its address has enough.
            self.held.evicted.notify_one();
        }
    }

    fn note_idle(&self) {
        self.note_busy();
        *self.held.idle_as.lock() = Some(self.all.idle.lock().insert(self.address, Arc::clone(&self.held)));
    }

    fn note_busy(&self) {
        if let Some(number) = self.held.idle_as.lock().take() {
            self.all.idle.lock().remove(number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.note_busy();
    }
}

/// A request under way, until its answer has been sent or given up.
pub struct UnderWay(Arc<Connection>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const ANY: Most = Most::Own(usize::MAX);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn is_evicted(connection: &Connection) -> bool {
        connection.evicted().now_or_never().is_some()
    }

    #[test]
    fn an_address_that_has_enough_loses_its_oldest_idle_connection_and_no_one_elses() {
        let all = Connections::new(10);
        let admit = |last| Arc::new(all.admit(address(last), ANY).unwrap());
        let first: Vec<_> = (0..8).map(|_| admit(1)).collect();
        let other = admit(2);
        // Its first has a request, so the second is the one that has been idle for longest.
        let request = first[0].begin();
        assert!(first[0].is_for(&"t".into()) && first[0].is_busy());
        let next = admit(1);
        assert!(is_evicted(&first[1]));
        assert!(!first.iter().chain([&other, &next]).any(|still| is_evicted(still)));
        assert_eq!(all.places.free(), 1);
        // Idle again, it is the youngest.
        drop(request);
        assert!(!first[0].is_busy());
        let _more = admit(1);
        assert!(is_evicted(&first[2]) && !is_evicted(&first[0]));
    }

    #[test]
    fn a_newcomer_is_served_even_if_all_are_taken_unless_all_have_requests() {
        let all = Connections::new(4);
        let admit = |last| all.admit(address(last), ANY).map(Arc::new);
        // A proxy stands for all who come through it.
        let proxied: Vec<_> = (0..4).map(|_| Arc::new(all.admit(address(9), Most::All).unwrap())).collect();
        assert_eq!(all.places.free(), 0);
        let one = admit(1).unwrap();
        assert!(is_evicted(&proxied[0]));
        // A proxy's requests are those of tenants. What is idle counts as free for them.
        let mut requests: Vec<_> = proxied[1..].iter().chain([&one]).map(Connection::begin).collect();
        assert!(proxied[1..].iter().chain([&one]).all(|connection| connection.is_for(&"t".into())));
        assert!(admit(2).is_none());
        requests.pop();
        assert!(admit(2).is_some());
        drop((requests, proxied, one));
        assert_eq!(all.places.free(), 4);
        assert!(all.idle.lock().all.is_empty() && all.idle.lock().by_address.is_empty());
    }

    #[test]
    fn requests_that_reach_nobody_leave_nothing_behind() {
        let all = Connections::new(4);
        let connection = Arc::new(all.admit(address(1), ANY).unwrap());
        for _ in 0..3 {
            drop(connection.begin());
        }
        let (first, second) = (connection.begin(), connection.begin());
        drop(first);
        assert!(connection.is_busy());
        drop(second);
        assert_eq!((all.idle.lock().all.len(), all.places.free()), (1, 3));
        drop(connection);
        assert_eq!((all.idle.lock().all.len(), all.places.free()), (0, 4));
    }
}
