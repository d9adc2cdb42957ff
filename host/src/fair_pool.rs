//! Pools that nobody can empty alone.
//!
//! Who asks for a place gets one if it has fewer than [`SHARE`] times as many as are free. So one who takes all it can
//! leaves a fifth to others, and who has few is served before those who have many. There are no fixed parts: what
//! nobody else wants may be had. Each further one who takes all it can leaves a fifth of what is left. Switches share
//! their packet buffers this way (dynamic thresholds).

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::sync::Mutex;

/// How many times as many as are free one may have.
pub const SHARE: usize = 4;
/// Bits of an IPv6 address that are counted: the setting `ipv6-prefix`, the same everywhere in the host.
static IPV6_PREFIX: AtomicU32 = AtomicU32::new(64);

/// Who takes a place: the address that a connection comes from, until it is known which tenant it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sharer {
    Address(IpAddr),
    Tenant(Arc<str>),
}

impl Sharer {
    /// An address in the form in which it is counted.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(network(address))
    }
}

/// Counts this many bits of IPv6 addresses from now on.
pub fn set_ipv6_prefix(bits: u32) {
    IPV6_PREFIX.store(bits, Ordering::Relaxed);
}

/// An address in the form in which it is counted: IPv4 whole, IPv6 by its network.
pub fn network(address: IpAddr) -> IpAddr {
    network_of(address, IPV6_PREFIX.load(Ordering::Relaxed))
}

fn network_of(address: IpAddr, bits: u32) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let uncounted = u128::MAX.checked_shr(bits).unwrap_or_default();
            Ipv6Addr::from_bits(address.to_bits() & !uncounted).into()
        }
        address => address,
    }
}

/// Places that those who come share.
pub struct FairPool<K> {
    most: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// One place, given back when this is dropped.
pub struct FairPlace<K: Clone + Eq + Hash> {
    pool: Arc<FairPool<K>>,
    by: K,
}

/// How many places one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// This many, and no more than its share.
    Own(usize),
    /// All there are: it stands for many others.
    All,
}

impl<K: Clone + Eq + Hash> FairPool<K> {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::new(Taken { all: 0, by: HashMap::new() }) })
    }

    /// Takes a place. `None`: none is free, or this one has enough.
    pub fn take(self: &Arc<Self>, by: K, most: Most) -> Option<FairPlace<K>> {
        let is_taken = self.taken.lock().take(&by, most, self.most, 0);
        is_taken.then(|| FairPlace { pool: Arc::clone(self), by })
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.most - self.taken.lock().all
    }
}

impl<K: Clone + Eq + Hash> Taken<K> {
    fn take(&mut self, by: &K, most: Most, places: usize, spare: usize) -> bool {
        let free = places.saturating_sub(self.all);
        let own = self.by.get(by).copied().unwrap_or(0);
        let may = match most {
            Most::Own(most) => own < most && own < SHARE.saturating_mul(free + spare),
            Most::All => true,
        };
        let may = may && free > 0;
        if may {
            self.all += 1;
            *self.by.entry(by.clone()).or_default() += 1;
        }
        may
    }

    fn give_back(&mut self, by: &K) {
        self.all -= 1;
        if let Some(count) = self.by.get_mut(by) {
            *count -= 1;
            if *count == 0 {
                self.by.remove(by);
            }
        }
    }
}

impl<K: Clone + Eq + Hash> FairPlace<K> {
    /// Gives the place to another. `None`: that one has enough, and the place is free. `spare`: how many that are taken
    /// could be free, too.
    pub fn pass_to(mut self, by: K, most: Most, spare: usize) -> Option<Self> {
        let pool = Arc::clone(&self.pool);
        let mut taken = pool.taken.lock();
        taken.give_back(&self.by);
        if taken.take(&by, most, pool.most, spare) {
            drop(taken);
            self.by = by;
            return Some(self);
        }
        // It is taken once more, for the drop to give it back.
        taken.take(&self.by, Most::All, pool.most, 0);
        drop(taken);
        None
    }
}

impl<K: Clone + Eq + Hash> Drop for FairPlace<K> {
    fn drop(&mut self) {
        self.pool.taken.lock().give_back(&self.by);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: Most = Most::Own(usize::MAX);

    fn take_all(pool: &Arc<FairPool<u8>>, by: u8) -> Vec<FairPlace<u8>> {
        std::iter::from_fn(|| pool.take(by, ANY)).collect()
    }

    #[test]
    fn as_many_bits_of_an_address_count_as_are_set() {
        let counted = |address: &str, bits| network_of(address.parse().unwrap(), bits).to_string();
        for (bits, expected) in [(128, "2001:db8:1:2::3"), (64, "2001:db8:1:2::"), (48, "2001:db8:1::"), (16, "2001::")]
        {
            assert_eq!(counted("2001:db8:1:2::3", bits), expected);
        }
        assert_eq!(counted("::ffff:9.9.9.9", 64), "9.9.9.9");
        assert_eq!(counted("9.9.9.9", 16), "9.9.9.9");
    }

    #[test]
    fn one_who_takes_all_it_can_leaves_room_and_who_has_few_is_served() {
        let pool = FairPool::new(100);
        let greedy = take_all(&pool, 1);
        assert_eq!((greedy.len(), pool.free()), (80, 20));
        let second = take_all(&pool, 2);
        assert_eq!((second.len(), pool.free()), (16, 4));
        assert!(pool.take(1, ANY).is_none() && pool.take(2, ANY).is_none());
        let third = pool.take(3, ANY).unwrap();
        assert!(pool.take(4, Most::Own(0)).is_none());
        assert_eq!((third.by, pool.free()), (3, 3));
        // A proxy stands for all who come through it.
        assert!(pool.take(1, Most::All).is_some());
        drop(greedy);
        assert_eq!(take_all(&pool, 3).len(), 67);
    }

    #[test]
    fn a_place_passes_on_or_is_free() {
        let pool = FairPool::new(2);
        let first = pool.take(1, ANY).unwrap();
        let second = pool.take(1, ANY).unwrap().pass_to(2, ANY, 0).unwrap();
        assert!(pool.take(3, ANY).is_none());
        assert!(second.pass_to(3, Most::Own(0), 0).is_none());
        assert_eq!(pool.free(), 1);
        drop(first);
        assert_eq!(pool.free(), 2);
        assert!(pool.taken.lock().by.is_empty());
    }

    proptest! {
        /// Whatever comes and goes, the counts are right, and who has none gets a place while one is free.
        #[test]
        fn who_has_none_gets_what_is_free(steps in prop::collection::vec((0_u8..5, any::<bool>()), 0..300)) {
            let pool = FairPool::new(12);
            let mut held: Vec<FairPlace<u8>> = Vec::new();
            for (by, takes) in steps {
                if takes {
                    held.extend(pool.take(by, ANY));
                } else if let Some(nth) = held.iter().position(|place| place.by == by) {
                    held.swap_remove(nth);
                }
                prop_assert_eq!(pool.free(), 12 - held.len());
                if pool.free() > 0 {
                    prop_assert!(pool.take(9, ANY).is_some());
                }
            }
        }
    }
}
