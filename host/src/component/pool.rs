//! Warm instances that serve a tenant's clients: any of them takes the next call, one call at a time each.
//!
//! Instances are made when all others are busy, up to the tenant's limit; beyond it callers wait in the order they came.
//! One that breaks is dropped, and there is no pause before the next: nobody but callers asks for instances. One that
//! nobody has needed for a while goes. Another version of the code has a pool of its own: calls that were there before, and
//! those that wait, are finished by the old one, which goes with the last of them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

use super::{
    Code, Guest, Role,
    call::Broken,
    host::Host,
    instance::{self, Instance},
};

/// A role's instances for one tenant.
pub struct Pool<R> {
    code: Arc<Code<R>>,
    pub guest: Guest,
    free: Arc<Semaphore>,
    /// Those without a call, and since when; the latest used last.
    idle: Mutex<Vec<(Instance<R>, Instant)>>,
    /// Calls after which an instance is replaced: what a guest leaks does not pile up.
    reuse: u32,
}

/// The right to make one call.
pub struct Slot<R> {
    pool: Arc<Pool<R>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<R: Role> Pool<R> {
    /// `instances` at most, each for `reuse` calls.
    pub fn new(code: Arc<Code<R>>, guest: Guest, instances: usize, reuse: u32) -> Arc<Self> {
        Arc::new(Self { code, guest, free: Arc::new(Semaphore::new(instances)), idle: Mutex::default(), reuse })
    }

    /// Waits for an instance's turn.
    pub async fn slot(self: Arc<Self>) -> Slot<R> {
        // It is never closed.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        Slot { pool: self, _permit: permit }
    }

    /// Takes out the instances that nobody has needed for so long, for the caller to drop.
    pub fn rest(&self, idle: Duration) -> Vec<impl Send + use<R>> {
        let mut instances = self.idle();
        let needed = instances.partition_point(|(_, since)| since.elapsed() >= idle);
        instances.drain(..needed).collect()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Instance<R>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Role> Slot<R> {
    pub fn guest(&self) -> &Guest {
        &self.pool.guest
    }

    /// Calls the guest within its deadline; that it broke is counted and logged here.
    pub async fn call<T>(
        &self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Result<T, Broken> {
        let Pool { code, guest, reuse, .. } = &*self.pool;
        let called = async {
            let idle = self.pool.idle().pop();
            let mut instance = match idle {
                Some((instance, _)) => instance,
                None => code.instantiate(guest).await?,
            };
            let value = instance.call(guest, deadline, call).await?;
            if instance.calls < *reuse {
                self.pool.idle().push((instance, Instant::now()));
            }
            Ok(value)
        };
        called.await.inspect_err(|broken| instance::broke(guest, broken, Duration::ZERO))
    }
}
