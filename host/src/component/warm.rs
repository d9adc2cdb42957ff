//! A component's warm instance: made when it is first needed, called in turn, replaced when it breaks.

use std::{
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{
    Store,
    component::{Component, Instance, InstancePre},
};

use super::{
    Engine, Guest, LoadError,
    call::{Broken, within},
    host::{self, Host},
};
use crate::metrics::CallMetrics;

/// Instantiating runs the guest's own start-up code.
const INSTANTIATE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before the second fresh instance in a row; it doubles up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a component is to the host: an interface it exports.
pub trait Role: Sized {
    const NAME: &'static str;
    const INTERFACE: &'static str;

    /// Finds the role's functions in an instance.
    fn find(store: &mut Store<Host>, instance: &Instance) -> wasmtime::Result<Self>;

    /// Checks their types before there is an instance.
    fn check(pre: &InstancePre<Host>) -> wasmtime::Result<()>;

    /// Logs that an instance broke, with what it works on in the role's own words.
    fn broke(guest: &Guest, broken: &Broken, pause: Duration);
}

/// A component's code, linked and known to have a role.
pub struct Code<R> {
    engine: Arc<Engine>,
    pre: InstancePre<Host>,
    role: PhantomData<fn() -> R>,
}

impl<R: Role> Code<R> {
    pub fn new(engine: &Arc<Engine>, component: &Component) -> Result<Self, LoadError> {
        let report = engine.report(component);
        if !report.roles.contains(&R::NAME) {
            let exports = if report.exports.is_empty() { "none".into() } else { report.exports.join(", ") };
            return Err(LoadError::Role { role: R::NAME, interface: R::INTERFACE, exports });
        }
        let pre = engine.link(component)?;
        R::check(&pre).map_err(|error| LoadError::Link(format!("{error:#}")))?;
        Ok(Self { engine: Arc::clone(engine), pre, role: PhantomData })
    }
}

/// The instance, and how it has fared.
pub struct Warm<R> {
    code: Arc<Code<R>>,
    pub guest: Guest,
    metrics: CallMetrics,
    instance: Option<(Store<Host>, R)>,
    /// Calls that broke since the last that did not.
    failures: u32,
    /// When the next instance may be made.
    not_before: Option<Instant>,
}

impl<R: Role> Warm<R> {
    pub fn new(code: Arc<Code<R>>, guest: Guest, metrics: CallMetrics) -> Self {
        Self { code, guest, metrics, instance: None, failures: 0, not_before: None }
    }

    /// Waits until a fresh instance may be made, if one is needed.
    pub async fn pause(&mut self) {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Calls the guest within its deadline; `None`: it broke, or it has and its pause is not over.
    pub async fn call<T>(
        &mut self,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Option<T> {
        if self.instance.is_none() {
            if self.not_before.is_some_and(|at| Instant::now() < at) {
                return None;
            }
            match self.instantiate().await {
                Ok(instance) => self.instance = Some(instance),
                Err(broken) => self.broke(&broken),
            }
        }
        let (store, role) = self.instance.as_mut()?;
        // The epoch has moved on since the last call, which is no reason to yield at the first check.
        store.set_epoch_deadline(1);
        let started = Instant::now();
        match within(deadline, &self.code.engine.ticker, call(store, role)).await {
            Ok(value) => {
                self.failures = 0;
                self.metrics.calls.inc();
                self.metrics.seconds.observe(started.elapsed().as_secs_f64());
                Some(value)
            }
            Err(broken) => {
                self.instance = None;
                self.broke(&broken);
                None
            }
        }
    }

    async fn instantiate(&mut self) -> Result<(Store<Host>, R), Broken> {
        let engine = &self.code.engine;
        let mut store = host::store(engine, &self.guest);
        store.set_epoch_deadline(1);
        let made = async {
            let instance = self.code.pre.instantiate_async(&mut store).await?;
            R::find(&mut store, &instance)
        };
        match within(INSTANTIATE_DEADLINE, &engine.ticker, made).await {
            Ok(role) => Ok((store, role)),
            Err(Broken::Trap(why)) => Err(Broken::Instantiate(why)),
            Err(broken) => Err(broken),
        }
    }

    fn broke(&mut self, broken: &Broken) {
        (self.metrics.failed)(broken.reason());
        // The first fresh instance is made at once.
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(1)));
        let pause = if self.failures == 0 { Duration::ZERO } else { doubled.min(LONGEST_PAUSE) };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        R::broke(&self.guest, broken, pause);
    }
}
