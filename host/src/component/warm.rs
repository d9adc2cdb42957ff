//! One warm instance with its work to itself: made when it is first needed, called in turn, replaced when it breaks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::Store;

use super::{
    Code, Guest, Role,
    call::Broken,
    host::Host,
    instance::{self, Instance},
};

/// Pause before the second fresh instance in a row; it doubles up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The instance, and how it has fared.
pub struct Warm<R> {
    code: Arc<Code<R>>,
    pub guest: Guest,
    instance: Option<Instance<R>>,
    /// Calls that broke since the last that did not.
    failures: u32,
    /// When the next instance may be made.
    not_before: Option<Instant>,
}

impl<R: Role> Warm<R> {
    pub fn new(code: Arc<Code<R>>, guest: Guest) -> Self {
        Self { code, guest, instance: None, failures: 0, not_before: None }
    }

    /// Waits until a fresh instance may be made, if one is needed.
    pub async fn pause(&mut self) {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Whether a call would come to nothing now.
    pub fn is_pausing(&self) -> bool {
        self.instance.is_none() && self.not_before.is_some_and(|at| Instant::now() < at)
    }

    /// Calls the guest within its deadline; `None`: it broke, or it has and its pause is not over.
    pub async fn call<T>(
        &mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Option<T> {
        if self.is_pausing() {
            return None;
        }
        if self.instance.is_none() {
            match self.code.instantiate(&self.guest).await {
                Ok(instance) => self.instance = Some(instance),
                Err(broken) => self.broke(&broken),
            }
        }
        match self.instance.as_mut()?.call(&self.guest, deadline, call).await {
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
        instance::broke(&self.guest, broken, pause);
    }
}
