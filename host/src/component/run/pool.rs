//! Warm instances that serve a tenant's clients. Any of them takes the next call; each makes one call at a time.
//!
//! An instance is made when all others are busy, up to the tenant's limit. Beyond it callers wait in the order they
//! came. An instance whose call failed is dropped, and the next is made without a pause, because only callers ask for
//! one. An idle instance goes after a while, and at once while others wait for its place. A new version of the code
//! gets a pool of its own. The old pool finishes the calls that it has, keeps no instance after them, and goes with the
//! last.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

use crate::{
    component::{
        Guest, Role, RoleCode,
        run::{call::Broken, host::Host, instance, instance::Instance},
    },
    sync::Mutex,
    tenant::places::Place,
};

/// Idle instances, and since when they are. The one used last is at the end.
type Idle<R> = Vec<(Instance<R>, Instant)>;

/// The instances of one role of a tenant.
pub struct Pool<R> {
    code: Arc<RoleCode<R>>,
    pub guest: Guest,
    free: Arc<Semaphore>,
    /// `None`: no instance is kept, because there is a newer version.
    idle: Mutex<Option<Idle<R>>>,
    /// The calls after which an instance is replaced, so that what a guest leaks does not pile up.
    reuse: u32,
}

/// The right to make one call.
pub struct Slot<R: Role> {
    pool: Arc<Pool<R>>,
    _permit: Option<OwnedSemaphorePermit>,
    /// `None`: the call has taken it.
    ready: Option<Ready<R>>,
}

/// What a call starts from.
enum Ready<R> {
    Instance(Instance<R>),
    /// Room for an instance that is yet to be made.
    Place(Place),
}

impl<R: Role> Pool<R> {
    /// Makes a pool of up to `instances` instances, each for `reuse` calls.
    pub fn new(code: Arc<RoleCode<R>>, guest: Guest, instances: usize, reuse: u32) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(instances.min(guest.version.limits.instances)));
        Arc::new(Self { code, guest, free, idle: Mutex::new(Some(Vec::new())), reuse })
    }

    /// Waits for an idle instance, or for the place of a new one.
    pub async fn slot(self: Arc<Self>) -> Slot<R> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        let idle = self.idle().as_mut().and_then(Vec::pop);
        let ready = match idle {
            Some((instance, _)) => Ready::Instance(instance),
            None => Ready::Place(self.guest.tenant.places.take().await),
        };
        Slot { pool: self, _permit: permit, ready: Some(ready) }
    }

    /// Keeps an instance for the next call, unless others wait for its place or there is a newer version.
    fn keep(&self, instance: Instance<R>) {
        if self.guest.tenant.places.are_waited_for() {
            return;
        }
        // It is dropped after the lock is given back.
        let _unwanted = match self.idle().as_mut() {
            Some(idle) => {
                idle.push((instance, Instant::now()));
                None
            }
            None => Some(instance),
        };
    }

    /// Makes way for a newer version. Takes out the idle instances, for the caller to drop; the others go after their
    /// calls.
    pub fn retire(&self) -> Vec<impl Send + use<R>> {
        self.idle().take().unwrap_or_default()
    }

    /// Takes out the instances that have been idle for a while, for the caller to drop. While others wait for a place,
    /// or the tenant's memory or mappings are nearly used up, takes out all idle ones.
    pub fn rest(&self) -> Vec<impl Send + use<R>> {
        let tenant = &self.guest.tenant;
        let waited_for =
            tenant.places.are_waited_for() || tenant.account.is_nearly_full() || tenant.process.lacks_mappings();
        let idle = if waited_for { Duration::ZERO } else { self.guest.version.limits.instance_idle };
        let mut kept = self.idle();
        let Some(instances) = kept.as_mut() else { return Vec::new() };
        let needed = instances.partition_point(|(_, since)| since.elapsed() >= idle);
        instances.drain(..needed).collect()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Idle<R>>> {
        self.idle.lock()
    }
}

impl<R: Role> Slot<R> {
    pub fn guest(&self) -> &Guest {
        &self.pool.guest
    }

    /// Calls the guest within its deadline. Counts and logs a call that failed.
    pub async fn call<T>(
        mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Result<T, Broken> {
        let ready = self.ready.take();
        let Pool { code, guest, reuse, .. } = &*self.pool;
        let called = async {
            let mut instance = match ready {
                Some(Ready::Instance(instance)) => instance,
                Some(Ready::Place(place)) => code.instantiate(guest, place).await?,
                // A slot is for one call, so this does not happen.
                None => code.instantiate(guest, guest.tenant.places.take().await).await?,
            };
            let value = instance.call(guest, deadline, call).await?;
            if instance.calls < *reuse {
                self.pool.keep(instance);
            }
            Ok(value)
        };
        called.await.inspect_err(|broken| instance::call_failed(guest, broken, Duration::ZERO))
    }
}

impl<R: Role> Drop for Slot<R> {
    fn drop(&mut self) {
        if let Some(Ready::Instance(instance)) = self.ready.take() {
            self.pool.keep(instance);
        }
    }
}
