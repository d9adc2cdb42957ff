//! Limits how many instances a tenant, and the whole host, may have at once.
//!
//! Each instance takes a place, first from its tenant and then from the host, and keeps it until it is dropped. Calls
//! that need an instance wait for places in the order they came. While one waits, idle instances of handlers and APIs
//! go at once. Those of jobs and filters go only when they have been idle for long, and a filter's not while its
//! connection is open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::metrics::TenantMetrics;

/// Shortest time between two searches for idle instances. A search takes a tenth of a millisecond for a thousand
/// tenants, and a tenant over its own limit would cause one at each call.
const CROWDED_INTERVAL: Duration = Duration::from_millis(10);

/// A number of places that can change.
pub struct PlacePool {
    free: Arc<Semaphore>,
    most: AtomicUsize,
    /// Places to remove when they are given back, because there are fewer now.
    excess: AtomicUsize,
    waiting: AtomicUsize,
}

/// The host's places.
pub struct HostPlaces {
    room: Arc<PlacePool>,
    /// Told of each call that begins to wait, for its tenant's places or the host's.
    crowded: Notify,
}

/// A tenant's places.
pub struct Places {
    own: Arc<PlacePool>,
    host: Arc<HostPlaces>,
    metrics: Arc<TenantMetrics>,
}

/// One instance's place, given back when this is dropped.
pub struct Place {
    _own: Permit,
    _host: Permit,
}

struct Permit {
    room: Arc<PlacePool>,
    permit: Option<OwnedSemaphorePermit>,
}

impl PlacePool {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            most: AtomicUsize::new(most),
            excess: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Changes the number of places. Only one thread may call this.
    fn set(&self, most: usize) {
        let before = self.most.swap(most, Ordering::Relaxed);
        let owed = self.excess.swap(0, Ordering::Relaxed);
        // Places yet to be removed are still there.
        let there = before + owed;
        if most > there {
            self.free.add_permits(most - there);
        } else {
            let gone = self.free.forget_permits(there - most);
            self.excess.store(there - most - gone, Ordering::Relaxed);
        }
    }

    async fn take(self: &Arc<Self>, begins_to_wait: impl FnOnce()) -> Permit {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let _waiting = WaitingCount::new(&self.waiting);
                begins_to_wait();
                // The semaphore is never closed.
                Arc::clone(&self.free).acquire_owned().await.ok()
            }
        };
        Permit { room: Arc::clone(self), permit }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let one_less = |excess: usize| excess.checked_sub(1);
        if self.room.excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

/// Counts a call as waiting until it is dropped.
struct WaitingCount<'a>(&'a AtomicUsize);

impl<'a> WaitingCount<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for WaitingCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HostPlaces {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { room: PlacePool::new(most), crowded: Notify::new() })
    }

    /// Returns when a call has begun to wait for a place, but not sooner than a while after `last`.
    pub async fn crowded(&self, last: Instant) {
        sleep_until(last + CROWDED_INTERVAL).await;
        self.crowded.notified().await;
    }
}

impl Places {
    pub fn new(most: usize, host: &Arc<HostPlaces>, metrics: Arc<TenantMetrics>) -> Self {
        Self { own: PlacePool::new(most), host: Arc::clone(host), metrics }
    }

    /// Changes the tenant's number of places. Instances that have one keep it.
    pub fn set(&self, most: usize) {
        self.own.set(most);
    }

    /// Waits for a place.
    pub async fn take(&self) -> Place {
        let waits = |limit| {
            self.metrics.limited(limit, 1);
            self.crowd();
        };
        let own = self.own.take(|| waits("instances")).await;
        let host = self.host.room.take(|| waits("host-instances")).await;
        Place { _own: own, _host: host }
    }

    /// Has instances that are idle looked for now.
    pub fn crowd(&self) {
        self.host.crowded.notify_one();
    }

    /// Whether a call waits for a place that an instance of this tenant could give back.
    pub fn are_waited_for(&self) -> bool {
        self.own.waiting.load(Ordering::Relaxed) > 0 || self.host.room.waiting.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;
    use crate::metrics::Metrics;

    fn places(most: usize, host: &Arc<HostPlaces>) -> Places {
        Places::new(most, host, Arc::new(Arc::new(Metrics::new()).tenant(&"t".into())))
    }

    #[tokio::test]
    async fn a_tenant_has_its_own_places_within_the_hosts() {
        let host = HostPlaces::new(3);
        let (one, other) = (places(2, &host), places(2, &host));
        let (first, _second) = (one.take().await, one.take().await);
        let mut third = Box::pin(one.take());
        assert!(poll!(&mut third).is_pending());
        assert!(one.are_waited_for() && !other.are_waited_for(), "its own places are its own matter");
        let _fourth = other.take().await;
        let mut fifth = Box::pin(other.take());
        assert!(poll!(&mut fifth).is_pending());
        assert!(other.are_waited_for(), "the host has no more");
        host.crowded(Instant::now()).await;
        // It is one of the tenant's again, and of the host's; there it is behind the other's.
        drop(first);
        assert!(poll!(&mut third).is_pending());
        assert!(poll!(&mut fifth).is_ready());
        drop(third);
        assert!(!one.are_waited_for() && !other.are_waited_for());
    }

    #[tokio::test]
    async fn there_may_be_more_and_fewer() {
        let host = HostPlaces::new(100);
        let places = places(1, &host);
        let first = places.take().await;
        places.set(3);
        let (second, third) = (places.take().await, places.take().await);
        places.set(1);
        let mut fourth = Box::pin(places.take());
        drop(first);
        drop(second);
        assert!(poll!(&mut fourth).is_pending(), "one is there, and one may be");
        drop(third);
        assert!(poll!(&mut fourth).is_ready());
        // Fewer, and more again before any has gone.
        let fifth = places.take().await;
        places.set(3);
        let _sixth = places.take().await;
        places.set(1);
        places.set(2);
        let mut seventh = Box::pin(places.take());
        assert!(poll!(&mut seventh).is_pending());
        drop(fifth);
        assert!(poll!(&mut seventh).is_ready());
    }
}
