//! The host's side of an instance: its limits of memory, tables and handles, and the state of its imports.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use config::TenantLimits;
use prometheus_client::metrics::gauge::Gauge;
use wasmtime::{
    ResourceLimiterAsync, Result, Store, UpdateDeadline,
    component::{Linker, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, async_trait};

use crate::{
    account::{Charge, Part},
    component::{
        RoleKind,
        imports::{self, Capabilities},
        run::{call::Broken, output::Output, system::is_out_of_memory},
        shape,
        shape::Shape,
    },
    metrics::GuestMetrics,
    tenant::{MappingShare, Tenant, TenantVersion, places::Place, turns::TurnShare},
};

/// Most entries in all tables of an instance.
const MAX_TABLE: usize = 100_000;
/// Most handles that an instance holds at once: streams, buckets, requests, header fields. A handle may take about 100
/// KiB of the host's memory, which the limit `memory` does not count.
pub(super) const MAX_HANDLES: usize = 1_000;
/// Most entries in the component model's own tables: the handles of an instance, its streams and futures, and what it
/// has lent. Each of the host's handles may be lent once at a time.
const MAX_ENTRIES: usize = 2 * MAX_HANDLES;
/// Bytes that an entry of a table takes.
const TABLE_ENTRY: usize = 16;
/// Bytes that one call may pass to the host, besides the largest publication or value. That is enough for some hundred
/// thousand small publications, or for the records of one append. The host copies these bytes, and a guest's list may
/// name the same memory a thousand times.
const MAX_TRANSFER: usize = 32 << 20;
/// What a call keeps of its time at most for what it does after an answer that is late.
const REST: Duration = Duration::from_millis(100);

/// Whose code runs, in which role, and with which limits.
#[derive(Clone)]
pub struct Guest {
    pub tenant: Arc<Tenant>,
    /// The tenant's manifest at the time when the code was loaded.
    pub version: Arc<TenantVersion>,
    pub role: RoleKind,
    /// The upstream of a filter, the schedule of a job, or the role's name again.
    pub name: Arc<str>,
    pub metrics: Arc<GuestMetrics>,
}

/// The data of one instance's store.
pub struct Host {
    limits: InstanceLimits,
    pub(in crate::component) table: ResourceTable,
    wasi: WasiCtx,
    pub(in crate::component) capabilities: Capabilities,
    guest: Guest,
    share: TurnShare,
    stderr: Output,
    /// When what the call under way has asked for must have come.
    answers_until: Instant,
    /// When the call under way must have returned.
    call_end: Instant,
    _counted: CountedInstance,
    /// What the instance takes besides its memories and tables.
    _charge: Charge,
    _mappings: MappingShare,
    place: Place,
}

/// Counts an instance until this is dropped.
struct CountedInstance(Gauge);

impl CountedInstance {
    fn new(instances: &Gauge) -> Self {
        instances.inc();
        Self(instances.clone())
    }
}

impl Drop for CountedInstance {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Host {
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.guest.tenant
    }

    pub fn version(&self) -> &Arc<TenantVersion> {
        &self.guest.version
    }

    /// Prepares for a call with this deadline.
    pub fn begin_call(&mut self, deadline: Duration) {
        self.outbound().begin_call();
        self.limits.lacked_memory = false;
        self.end_within(deadline);
        self.answers_until = self.call_end - REST.min(deadline / 10);
    }

    /// Has the guest's code trap when it still runs, or waits, after this time.
    pub fn end_within(&mut self, deadline: Duration) {
        self.call_end = Instant::now() + deadline;
    }

    /// When the call under way must have returned.
    pub fn call_end(&self) -> Instant {
        self.call_end
    }

    /// When what the call under way has asked for must have come, so that the guest can still say that it did not.
    pub fn answers_until(&self) -> Instant {
        self.answers_until
    }

    /// Whether the system had no memory for a growth of the guest's, in the call under way, that its limits allow.
    pub fn lacked_memory(&self) -> bool {
        self.limits.lacked_memory
    }

    /// Ends the instance, and gives back its place.
    pub fn into_place(self) -> Place {
        self.place
    }

    /// The instance's share of its tenant's turns on the guests' threads.
    pub fn share(&self) -> &TurnShare {
        &self.share
    }

    /// What the guest writes to its standard error.
    pub fn stderr(&self) -> &Output {
        &self.stderr
    }

    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

/// A store for a new instance of a component of this shape, with its limits, the WASI that its grants allow, and its
/// capabilities. Waits for a moment if the tenant's memory is full.
pub async fn store(
    engine: &wasmtime::Engine,
    shape: &Shape,
    guest: &Guest,
    place: Place,
) -> Result<Store<Host>, Broken> {
    let account = &guest.tenant.account;
    let mut charge = Charge::new(account, Part::Instances);
    let Some(mappings) = guest.tenant.process.mappings(shape.mappings()) else {
        guest.tenant.places.crowd();
        return Err(Broken::Mappings);
    };
    if !charge.grow(shape.instance_bytes()).await {
        // Idle instances of the tenant go, for the next try.
        guest.tenant.places.crowd();
        return Err(Broken::Memory);
    }
    let stderr = Output::stderr(guest);
    let wasi = imports::wasi::context(guest, &stderr);
    let wasi = wasi.map_err(|error| Broken::Instantiate(format!("{error:#}"), String::new()))?;
    let memory = guest.version.limits.memory;
    let grown = Charge::new(account, Part::Guests);
    let limits =
        InstanceLimits { memory, table: MAX_TABLE, grown, guest: guest.clone(), told: false, lacked_memory: false };
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_HANDLES);
    let now = Instant::now();
    let host = Host {
        limits,
        table,
        wasi,
        capabilities: Capabilities::new(guest),
        guest: guest.clone(),
        share: guest.tenant.turns.share(),
        stderr,
        // A start function has not long.
        answers_until: now + REST,
        // Nothing runs yet.
        call_end: now,
        _counted: CountedInstance::new(&guest.metrics.instances),
        _charge: charge,
        _mappings: mappings,
        place,
    };
    let mut store = Store::new(engine, host);
    store.limiter_async(|host| &mut host.limits);
    store.set_max_component_handles(MAX_ENTRIES);
    let TenantLimits { publication, state, .. } = guest.version.limits;
    store.set_hostcall_fuel(publication.max(state).saturating_add(MAX_TRANSFER));
    store.epoch_deadline_callback(|store| {
        let host = store.data();
        if Instant::now() >= host.call_end {
            return Ok(UpdateDeadline::Interrupt);
        }
        host.share.yields();
        Ok(UpdateDeadline::Yield(1))
    });
    Ok(store)
}

/// A linker with everything that any component may import.
pub fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    imports::link(&mut linker)?;
    Ok(linker)
}

/// How far one instance may still grow, with all its memories and tables.
struct InstanceLimits {
    /// Bytes that its memories may still grow.
    memory: usize,
    /// Entries that its tables may still grow.
    table: usize,
    /// What both have grown, on the tenant's account.
    grown: Charge,
    guest: Guest,
    /// Whether the log has said that a limit was reached.
    told: bool,
    /// Whether the system had no memory for a growth, in the call under way.
    lacked_memory: bool,
}

impl InstanceLimits {
    /// Counts and logs a refusal. A guest only sees that its memory or table does not grow, which few guests report.
    fn answer(&mut self, granted: bool, limit: &'static str) -> bool {
        if !granted {
            self.guest.tenant.metrics.limited(limit, 1);
            if !std::mem::replace(&mut self.told, true) {
                let memory = self.guest.version.limits.memory;
                self.guest.log(|| tracing::warn!(limit, memory, "an instance reached its limit"));
            }
        }
        granted
    }

    /// Takes growth off what the instance has `left`, and charges it to the tenant, `size` bytes for each unit. What the
    /// memory's or table's own maximum `most` forbids is not taken.
    async fn take(
        &mut self,
        left: impl Fn(&mut Self) -> &mut usize,
        limit: &'static str,
        size: usize,
        growth: Range<usize>,
        most: Option<usize>,
    ) -> bool {
        if most.is_some_and(|most| growth.end > most) {
            return false;
        }
        let within = grow(left(self), growth.start, growth.end);
        if !self.answer(within, limit) {
            return false;
        }
        let charged = self.charge(growth.len() * size).await;
        *left(self) += if charged { 0 } else { growth.len() };
        charged
    }

    /// Charges growth to the tenant.
    async fn charge(&mut self, bytes: usize) -> bool {
        let granted = self.grown.grow(bytes).await;
        if !granted {
            self.guest.tenant.places.crowd();
        }
        granted
    }
}

/// Takes growth off what is left. `false`: there is not enough left.
fn grow(left: &mut usize, current: usize, desired: usize) -> bool {
    let rest = left.checked_sub(desired.saturating_sub(current));
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

#[async_trait]
impl ResourceLimiterAsync for InstanceLimits {
    async fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> Result<bool> {
        Ok(self.take(|limits| &mut limits.memory, "memory", 1, current..desired, most).await)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        self.lacked_memory |= is_out_of_memory(&error);
        Ok(())
    }

    async fn table_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> Result<bool> {
        Ok(self.take(|limits| &mut limits.table, "tables", TABLE_ENTRY, current..desired, most).await)
    }

    fn instances(&self) -> usize {
        shape::MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        shape::MAX_TABLES
    }

    fn memories(&self) -> usize {
        shape::MAX_MEMORIES
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

#[cfg(test)]
mod tests {
    use crate::component::run::host::grow;

    #[test]
    fn all_memories_of_an_instance_share_its_limit() {
        let mut left = 100;
        assert!(grow(&mut left, 0, 60));
        assert!(!grow(&mut left, 0, 41));
        assert!(grow(&mut left, 60, 90));
        assert!(grow(&mut left, 0, 10));
        assert!(!grow(&mut left, 10, 11));
    }
}
