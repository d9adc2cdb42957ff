//! One warm instance that has its work to itself.
//!
//! It is made when it is first needed, and makes one call at a time. A fresh one replaces it after a call that failed,
//! and when there is another version of its code.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wasmtime::Store;

use crate::{
    backoff::{Backoff, Pauses},
    component::{
        Guest, Live, Role,
        run::{call::Broken, host::Host, instance, instance::Instance, swap::RoleVersion},
    },
    tenant::places::Place,
};

/// Pauses before a fresh instance. The first one in a row is made at once.
const PAUSES: Pauses =
    Pauses { free: 1, first: Duration::from_millis(50), longest: Duration::from_secs(5), jitter: false };

/// The instance, and what is known of its failures.
pub struct Warm<R> {
    live: Arc<Live<R>>,
    version: Arc<RoleVersion<R>>,
    instance: Option<Instance<R>>,
    /// Counts the instances that there were and are.
    serial: u64,
    /// What an instance of another version has left for the next, which then need not queue for a place.
    place: Option<Place>,
    /// When it was last called.
    used: Instant,
    /// Counts the calls that failed since the last that returned.
    backoff: Backoff,
    /// When the next instance may be made.
    not_before: Option<Instant>,
}

impl<R: Role> Warm<R> {
    pub fn new(live: Arc<Live<R>>) -> Self {
        let version = live.version();
        let backoff = Backoff::new(PAUSES);
        Self { live, version, instance: None, serial: 0, place: None, used: Instant::now(), backoff, not_before: None }
    }

    /// The version whose code runs.
    pub fn version(&self) -> Arc<RoleVersion<R>> {
        Arc::clone(&self.version)
    }

    /// The guest whose code runs.
    pub fn guest(&self) -> &Guest {
        &self.version.guest
    }

    /// Another number, another instance. A number above the last means that the next call makes one.
    pub fn serial(&self) -> u64 {
        self.serial + u64::from(self.instance.is_none())
    }

    /// Goes over to another version if there is one. Its code has not failed yet, so that there is no pause.
    pub fn update(&mut self) -> &RoleVersion<R> {
        if !self.live.is(&self.version) {
            self.version = self.live.version();
            self.place = self.instance.take().map(Instance::into_place).or(self.place.take());
            self.backoff.reset();
            self.not_before = None;
        }
        &self.version
    }

    /// Waits until a fresh instance may be made, if one is needed.
    pub async fn pause(&mut self) {
        self.update();
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Whether a call would fail now because of a pause.
    pub fn is_pausing(&self) -> bool {
        self.instance.is_none() && self.not_before.is_some_and(|at| Instant::now() < at)
    }

    /// When its instance, or the place for one, will have been idle for as long as it may. `None`: there is neither.
    pub fn idle_at(&self) -> Option<Instant> {
        let is_there = self.instance.is_some() || self.place.is_some();
        is_there.then(|| self.used + self.version.guest.version.limits.instance_idle)
    }

    /// When the time of the last call is over, which has returned and had this deadline.
    pub fn until(&self, deadline: Duration) -> Instant {
        let took = self.instance.as_ref().map_or(deadline, |instance| instance.took);
        self.used + deadline.saturating_sub(took)
    }

    /// Lets go of an instance that is not needed for now.
    pub fn rest(&mut self) {
        self.instance = None;
        self.place = None;
    }

    /// Calls the guest within its deadline, in the version that [`Warm::update`] has last gone over to. `None`: the
    /// call failed, or the pause after an earlier failure is not over.
    pub async fn call<T>(
        &mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Option<T> {
        let value = self.prepare(deadline, call).await?;
        self.backoff.reset();
        Some(value)
    }

    /// Does the same for a call that every fresh instance gets: it is no sign that the next ones will return.
    pub async fn prepare<T>(
        &mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Option<T> {
        if self.is_pausing() {
            return None;
        }
        let guest = &self.version.guest;
        if self.instance.is_none() {
            let place = match self.place.take() {
                Some(place) => Ok(place),
                None => timeout(deadline, guest.tenant.places.take()).await,
            };
            let made = match place {
                Ok(place) => self.version.code.instantiate(guest, place).await,
                Err(_) => Err(Broken::Busy(deadline)),
            };
            match made {
                Ok(instance) => {
                    self.instance = Some(instance);
                    self.serial += 1;
                }
                Err(broken) => self.failed(&broken),
            }
        }
        let called = self.instance.as_mut()?.call(&self.version.guest, deadline, call).await;
        self.used = Instant::now();
        match called {
            Ok(value) => Some(value),
            Err(broken) => {
                self.instance = None;
                self.failed(&broken);
                None
            }
        }
    }

    fn failed(&mut self, broken: &Broken) {
        let pause = self.backoff.fail();
        self.not_before = Some(Instant::now() + pause);
        instance::call_failed(&self.version.guest, broken, pause);
    }
}
