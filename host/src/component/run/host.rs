//! What an instance has around it: its limits, and the host's side of its imports.

use std::sync::Arc;

use config::TenantLimits;
use prometheus_client::metrics::gauge::Gauge;
use wasmtime::{
    ResourceLimiter, Result, Store, UpdateDeadline,
    component::{Linker, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::{
    component::{
        Engine, RoleKind,
        imports::{self, Capabilities},
        run::{output::Output, wasi},
    },
    metrics::GuestMetrics,
    tenant::{Tenant, TenantVersion, places::Place, turns::TurnShare},
};

/// Core instances, memories and tables that one component instance may have: languages' toolchains need a few.
const MAX_PARTS: usize = 64;
/// Entries in all tables of an instance.
const MAX_TABLE: usize = 100_000;
/// Handles that an instance may hold at once: streams, buckets, requests, header fields. What is behind one takes some 100 KiB of
/// the host's memory at the most, which `memory` does not count.
pub(super) const MAX_HANDLES: usize = 1_000;
/// Bytes that one call may hand over to the host beside the largest publication or value, each of which is copied: some
/// hundred thousand small publications, the records of one append. A list may name the same memory a thousand times.
const MAX_TRANSFER: usize = 32 << 20;

/// Whose code runs, and within which limits.
#[derive(Clone)]
pub struct Guest {
    pub tenant: Arc<Tenant>,
    /// What its manifest said when the code was taken.
    pub version: Arc<TenantVersion>,
    pub role: RoleKind,
    /// What it works on: a filter's upstream, a job's schedule; else its role again.
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
    _counted: Counted,
    place: Place,
}

/// An instance that counts as there until this is dropped.
struct Counted(Gauge);

impl Counted {
    fn new(instances: &Gauge) -> Self {
        instances.inc();
        Self(instances.clone())
    }
}

impl Drop for Counted {
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

    /// What is left of an instance that has gone.
    pub fn into_place(self) -> Place {
        self.place
    }

    /// Of its tenant's turns on the guests' threads.
    pub fn share(&self) -> &TurnShare {
        &self.share
    }

    /// What it writes to its standard error.
    pub fn stderr(&self) -> &Output {
        &self.stderr
    }

    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

/// A fresh store: a WASI with what is granted, the tenant's settings, its limits.
pub fn store(engine: &Engine, guest: &Guest, place: Place) -> Result<Store<Host>> {
    let stderr = Output::new(guest, "stderr");
    let wasi = wasi::wasi(guest, &stderr)?;
    let memory = guest.version.limits.memory;
    let limits = InstanceLimits { memory, table: MAX_TABLE, guest: guest.clone(), told: false };
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_HANDLES);
    let host = Host {
        limits,
        table,
        wasi,
        capabilities: Capabilities::new(guest),
        guest: guest.clone(),
        share: guest.tenant.turns.share(),
        stderr,
        _counted: Counted::new(&guest.metrics.instances),
        place,
    };
    let mut store = Store::new(engine.wasmtime(), host);
    store.limiter(|host| &mut host.limits);
    let TenantLimits { publication, state, .. } = guest.version.limits;
    store.set_hostcall_fuel(publication.max(state).saturating_add(MAX_TRANSFER));
    store.epoch_deadline_callback(|store| {
        store.data().share.yields();
        Ok(UpdateDeadline::Yield(1))
    });
    Ok(store)
}

/// All that any component may import.
pub fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    imports::link(&mut linker)?;
    Ok(linker)
}

/// What one instance may still take, all its memories and tables together.
struct InstanceLimits {
    /// Bytes.
    memory: usize,
    /// Entries.
    table: usize,
    guest: Guest,
    /// The log says so once.
    told: bool,
}

impl InstanceLimits {
    /// Counts what is refused; guests are told by the failure of what they ask for, which few of them report.
    fn answer(&mut self, granted: bool, limit: &'static str) -> bool {
        if !granted {
            self.guest.tenant.metrics.limited(limit, 1);
            if !std::mem::replace(&mut self.told, true) {
                let memory = self.guest.version.limits.memory;
                self.guest.log(|| tracing::warn!(limit, memory, "an instance wants more than it may have"));
            }
        }
        granted
    }
}

/// Takes growth off what is left, if there is enough.
fn grow(left: &mut usize, current: usize, desired: usize) -> bool {
    let rest = left.checked_sub(desired.saturating_sub(current));
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

impl ResourceLimiter for InstanceLimits {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let granted = grow(&mut self.memory, current, desired);
        Ok(self.answer(granted, "memory"))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let granted = grow(&mut self.table, current, desired);
        Ok(self.answer(granted, "tables"))
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
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
