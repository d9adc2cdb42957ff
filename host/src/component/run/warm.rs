//! One warm instance with its work to itself: made when it is first needed, called in turn, replaced when it breaks and
//! when there is another version of its code.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use wasmtime::Store;

use crate::{
    component::{
        Guest, Live, Role,
        run::{call::Broken, host::Host, instance, instance::Instance, swap::RoleVersion},
    },
    tenant::places::Place,
};

/// Pause before the second fresh instance in a row; it doubles up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The instance, and how it has fared.
pub struct Warm<R> {
    live: Arc<Live<R>>,
    version: Arc<RoleVersion<R>>,
    instance: Option<Instance<R>>,
    /// Of an instance of another version, for the next: whoever has a place does not queue for it again.
    place: Option<Place>,
    /// When it was last called.
    used: Instant,
    /// Calls that broke since the last that did not.
    failures: u32,
    /// When the next instance may be made.
    not_before: Option<Instant>,
}

impl<R: Role> Warm<R> {
    pub fn new(live: Arc<Live<R>>) -> Self {
        let version = live.version();
        Self { live, version, instance: None, place: None, used: Instant::now(), failures: 0, not_before: None }
    }

    /// Whose code is run.
    pub fn guest(&self) -> &Guest {
        &self.version.guest
    }

    /// Goes over to another version if there is one: its code has broken nothing yet.
    pub fn update(&mut self) -> &RoleVersion<R> {
        if !self.live.is(&self.version) {
            self.version = self.live.version();
            self.place = self.instance.take().map(Instance::into_place).or(self.place.take());
            self.failures = 0;
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

    /// Whether a call would come to nothing now.
    pub fn is_pausing(&self) -> bool {
        self.instance.is_none() && self.not_before.is_some_and(|at| Instant::now() < at)
    }

    /// When its instance, or the place for one, has been idle for as long as it may; `None`: there is none.
    pub fn idle_at(&self) -> Option<Instant> {
        let is_there = self.instance.is_some() || self.place.is_some();
        is_there.then(|| self.used + self.version.guest.version.limits.instance_idle)
    }

    /// Lets go of an instance that is not needed for now.
    pub fn rest(&mut self) {
        self.instance = None;
        self.place = None;
    }

    /// Calls the guest within its deadline; `None`: it broke, or it has and its pause is not over.
    pub async fn call<T>(
        &mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Option<T> {
        self.update();
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
                Ok(instance) => self.instance = Some(instance),
                Err(broken) => self.broke(&broken),
            }
        }
        let called = self.instance.as_mut()?.call(&self.version.guest, deadline, call).await;
        self.used = Instant::now();
        match called {
            Ok(value) => {
                self.failures = 0;
                Some(value)
            }
            Err(broken) => {
                self.instance = None;
                self.broke(&broken);
                None
            }
        }
    }

    fn broke(&mut self, broken: &Broken) {
        // The first fresh instance is made at once.
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(1)));
        let pause = if self.failures == 0 { Duration::ZERO } else { doubled.min(LONGEST_PAUSE) };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        instance::broke(&self.version.guest, broken, pause);
    }
}
