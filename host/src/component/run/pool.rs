//! Warm instances that serve a tenant's clients: any of them takes the next call, one call at a time each.
//!
//! Instances are made when all others are busy, up to the tenant's limit; beyond it callers wait in the order they came.
//! One that breaks is dropped, and there is no pause before the next: nobody but callers asks for instances. One that
//! nobody has needed for a while goes, and at once while others wait for a place. Another version of the code has a
//! pool of its own: calls that were there before, and those that wait, are finished by the old one, which keeps no instance any
//! more and goes with the last of them.

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

/// Instances without a call, and since when; the latest used last.
type Idle<R> = Vec<(Instance<R>, Instant)>;

/// A role's instances for one tenant.
pub struct Pool<R> {
    code: Arc<RoleCode<R>>,
    pub guest: Guest,
    free: Arc<Semaphore>,
    /// `None`: none is kept, there is another version.
    idle: Mutex<Option<Idle<R>>>,
    /// Calls after which an instance is replaced: what a guest leaks does not pile up.
    reuse: u32,
}

/// The right to make one call.
pub struct Slot<R: Role> {
    pool: Arc<Pool<R>>,
    _permit: Option<OwnedSemaphorePermit>,
    /// Taken by the call.
    ready: Option<Ready<R>>,
}

/// What a call needs.
enum Ready<R> {
    Instance(Instance<R>),
    /// To make one.
    Place(Place),
}

impl<R: Role> Pool<R> {
    /// `instances` at most, each for `reuse` calls.
    pub fn new(code: Arc<RoleCode<R>>, guest: Guest, instances: usize, reuse: u32) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(instances.min(guest.version.limits.instances)));
        Arc::new(Self { code, guest, free, idle: Mutex::new(Some(Vec::new())), reuse })
    }

    /// Waits for an instance's turn, or for the place of another.
    pub async fn slot(self: Arc<Self>) -> Slot<R> {
        // It is never closed.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        let idle = self.idle().as_mut().and_then(Vec::pop);
        let ready = match idle {
            Some((instance, _)) => Ready::Instance(instance),
            None => Ready::Place(self.guest.tenant.places.take().await),
        };
        Slot { pool: self, _permit: permit, ready: Some(ready) }
    }

    /// Keeps an instance for the next call, unless others wait for its place or there is another version.
    fn keep(&self, instance: Instance<R>) {
        if self.guest.tenant.places.are_waited_for() {
            return;
        }
        // Not dropped under the lock.
        let _unwanted = match self.idle().as_mut() {
            Some(idle) => {
                idle.push((instance, Instant::now()));
                None
            }
            None => Some(instance),
        };
    }

    /// There is another version: takes out the instances that have nothing to do, for the caller to drop. From now on each
    /// goes after its call.
    pub fn retire(&self) -> Vec<impl Send + use<R>> {
        self.idle().take().unwrap_or_default()
    }

    /// Takes out the instances that nobody has needed for a while, for the caller to drop; while others wait for a place,
    /// all that have nothing to do.
    pub fn rest(&self) -> Vec<impl Send + use<R>> {
        let waited_for = self.guest.tenant.places.are_waited_for();
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

    /// Calls the guest within its deadline; that it broke is counted and logged here.
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
                // A slot is for one call; there is no other.
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
