//! A component's code and its instances. An instance is called within a deadline, and dropped after a call that failed.

use std::{any::Any, marker::PhantomData, sync::Arc, time::Duration};

use wasmtime::{Store, component, component::InstancePre};

use crate::{
    component::{
        Guest, RoleKind,
        run::{
            call::{Broken, within},
            host,
            host::Host,
            ticker::Ticker,
        },
        shape::Shape,
    },
    tenant::places::Place,
};

/// Instantiating runs the guest's own start-up code.
const INSTANTIATE_DEADLINE: Duration = Duration::from_secs(10);

/// What a component is to the host: an interface it exports.
pub trait Role: Sized + Send {
    const KIND: RoleKind;

    /// Finds the role's functions in an instance.
    fn find(store: &mut Store<Host>, instance: &component::Instance) -> wasmtime::Result<Self>;

    /// Checks the types of these functions before there is an instance.
    fn check(pre: &InstancePre<Host>) -> wasmtime::Result<()>;
}

/// Code that was loaded. All who have the same content share it.
pub trait LoadedCode: Any + Send + Sync {
    fn shape(&self) -> &Shape;

    /// Bytes of memory that it takes.
    fn bytes(&self) -> usize;
}

/// A component's code, linked and known to have a role: what instances are made from.
pub struct RoleCode<R> {
    pub pre: InstancePre<Host>,
    pub ticker: Arc<Ticker>,
    /// What the code was loaded as. Kept, so that others with the same content find it.
    pub loaded: Arc<dyn LoadedCode>,
    /// It needs a store.
    pub keeps_records: bool,
    /// It wants to be told which channels are active.
    pub follows_demand: bool,
    /// It says how long clients may stay.
    pub leases: bool,
    pub role: PhantomData<fn() -> R>,
}

impl<R: Role> RoleCode<R> {
    /// A fresh instance.
    pub async fn instantiate(&self, guest: &Guest, place: Place) -> Result<Instance<R>, Broken> {
        let mut store = host::store(self.pre.engine(), self.loaded.shape(), guest, place).await?;
        store.set_epoch_deadline(1);
        store.data_mut().end_within(INSTANTIATE_DEADLINE);
        let (share, stderr) = (store.data().share().clone(), store.data().stderr().clone());
        let made = async {
            let instance = self.pre.instantiate_async(&mut store).await?;
            R::find(&mut store, &instance)
        };
        let made = within(INSTANTIATE_DEADLINE, &self.ticker, &share, &stderr, made).await;
        match made.map_err(|broken| explained(broken, store.data())) {
            Ok((role, _)) => {
                stderr.release();
                Ok(Instance { ticker: Arc::clone(&self.ticker), store, role, calls: 0, took: Duration::ZERO })
            }
            Err(Broken::Trap(why, more)) => Err(Broken::Instantiate(why, more)),
            Err(broken) => Err(broken),
        }
    }
}

/// One instance. It must be dropped after a call that failed.
pub struct Instance<R> {
    ticker: Arc<Ticker>,
    store: Store<Host>,
    role: R,
    /// Calls that it has returned from.
    pub calls: u32,
    /// How long the last of them took.
    pub took: Duration,
}

impl<R> Instance<R> {
    /// Gives its place to the instance that comes after it.
    pub fn into_place(self) -> Place {
        self.store.into_data().into_place()
    }
}

impl<R: Role> Instance<R> {
    /// Calls the guest within its deadline, and counts the call if it returned.
    pub async fn call<T>(
        &mut self,
        guest: &Guest,
        deadline: Duration,
        call: impl AsyncFnOnce(&mut Store<Host>, &R) -> wasmtime::Result<T>,
    ) -> Result<T, Broken> {
        // The epoch has moved on since the last call, which is no reason to yield at the first check.
        self.store.set_epoch_deadline(1);
        self.store.data_mut().begin_call(deadline);
        let (share, stderr) = (self.store.data().share().clone(), self.store.data().stderr().clone());
        let called = within(deadline, &self.ticker, &share, &stderr, call(&mut self.store, &self.role)).await;
        let (value, time) = called.map_err(|broken| explained(broken, self.store.data()))?;
        stderr.release();
        self.store.data_mut().outbound().end_call();
        self.calls = self.calls.saturating_add(1);
        self.took = time;
        guest.metrics.calls.inc();
        guest.metrics.seconds.observe(time.as_secs_f64());
        // This is outside its deadline, because a slow disk is not the guest's fault.
        self.store.data_mut().write_deferred().await;
        Ok(value)
    }
}

/// Adds what the host knows about a call that failed.
fn explained(broken: Broken, host: &Host) -> Broken {
    match broken {
        // Guests give up when their memory does not grow.
        Broken::Trap(..) if host.lacked_memory() => {
            host.stderr().release();
            Broken::HostMemory
        }
        broken => broken.saying(host.stderr()),
    }
}

/// Counts and logs that a call of a guest failed. `pause`: until there may be a fresh instance.
pub fn call_failed(guest: &Guest, broken: &Broken, pause: Duration) {
    guest.metrics.failed(broken.blame(), broken.reason());
    match broken {
        Broken::Deadline(..) => guest.tenant.metrics.limited(guest.role.call_limit(), 1),
        Broken::Handles => guest.tenant.metrics.limited("handles", 1),
        // Other limits were counted where they refused something.
        Broken::Trap(..) | Broken::Instantiate(..) | Broken::Busy(_) | Broken::Memory | Broken::HostMemory => {}
        Broken::Mappings => guest.tenant.metrics.limited("mappings", 1),
    }
    let error = broken.to_string();
    let pause_ms = pause.as_millis();
    guest.log_text(error.len(), || match broken {
        Broken::HostMemory => tracing::error!(pause_ms, error, "the host failed a component's call"),
        _ => tracing::warn!(pause_ms, error, "component call failed"),
    });
}
