//! Warm instances that serve a tenant's clients: any of them takes the next call, one call at a time each.
//!
//! Instances are made when all others are busy, up to the tenant's limit; beyond it callers wait in the order they came.
//! One that breaks is dropped, and there is no pause before the next: nobody but callers asks for instances.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};
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
    free: Semaphore,
    /// Those without a call; the latest used on top.
    idle: Mutex<Vec<Instance<R>>>,
    /// Calls after which an instance is replaced: what a guest leaks does not pile up.
    reuse: u32,
}

/// The right to make one call.
pub struct Slot<'p, R> {
    pool: &'p Pool<R>,
    _permit: Option<SemaphorePermit<'p>>,
}

impl<R: Role> Pool<R> {
    /// `instances` at most, each for `reuse` calls.
    pub fn new(code: Arc<Code<R>>, guest: Guest, instances: usize, reuse: u32) -> Self {
        Self { code, guest, free: Semaphore::new(instances), idle: Mutex::default(), reuse }
    }

    /// Waits for an instance's turn.
    pub async fn slot(&self) -> Slot<'_, R> {
        // It is never closed.
        Slot { pool: self, _permit: self.free.acquire().await.ok() }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Instance<R>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Role> Slot<'_, R> {
    /// Calls the guest within its deadline; that it broke is counted and logged here.
    pub async fn call<T>(
        self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Result<T, Broken> {
        let Pool { code, guest, reuse, .. } = self.pool;
        let called = async {
            let idle = self.pool.idle().pop();
            let mut instance = match idle {
                Some(instance) => instance,
                None => code.instantiate(guest).await?,
            };
            let value = instance.call(guest, deadline, call).await?;
            if instance.calls < *reuse {
                self.pool.idle().push(instance);
            }
            Ok(value)
        };
        called.await.inspect_err(|broken| instance::broke(guest, broken, Duration::ZERO))
    }
}
