//! The code of many tenants at once, as at the start of the host.
//!
//! A component that cannot be used ends the host's start, with exit code 2: it would be no better at the next. No trial is made
//! here, unlike when a tenant changes: a trial runs the tenant's own start-up code, which may break at one start and not at
//! the next, and that may not decide whether the others come up. One whose instances break then is counted and logged as
//! ever.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use config::TenantConfig;

use crate::{
    component::{Engine, load::compile},
    tenants::TenantCode,
};

/// Loads the code of each, as many at once as may compile; in their order, with what is wrong with it.
pub fn load_all(tenants: &[TenantConfig], engine: &Arc<Engine>) -> Vec<Result<TenantCode, Vec<String>>> {
    let loaded: Vec<_> = tenants.iter().map(|config| (config, OnceLock::new())).collect();
    let next = AtomicUsize::new(0);
    let load = || {
        while let Some((config, code)) = loaded.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Nobody else has this place.
            let _ = code.set(TenantCode::load(config, engine));
        }
    };
    thread::scope(|scope| {
        for _ in 0..compile::AT_ONCE.min(tenants.len()) {
            scope.spawn(load);
        }
    });
    loaded.into_iter().filter_map(|(_, code)| code.into_inner()).collect()
}
