//! The code of many tenants at once, as the host loads it when it starts.
//!
//! A tenant with a component that cannot be used is refused, and the others are served. Unlike for a tenant that
//! changes, there is no trial: it runs the tenant's own start-up code, which may fail at one start and not at the next.
//! Instances that fail later are counted and logged.

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
    progress::with_bar,
    tenants::{CodeProblem, TenantCode},
};

/// Loads each tenant's code, as many at once as may compile, behind a bar. The results are in the tenants' order.
pub fn load_all(tenants: &[TenantConfig], engine: &Arc<Engine>) -> Vec<Result<TenantCode, Vec<CodeProblem>>> {
    let loaded: Vec<_> = tenants.iter().map(|config| (config, OnceLock::new())).collect();
    let next = AtomicUsize::new(0);
    let components = tenants.iter().map(|config| config.components().count()).sum();
    with_bar("loading components", components, |progress| {
        let load = || {
            while let Some((config, code)) = loaded.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Nobody else has this place.
                let _ = code.set(TenantCode::load(config, engine, progress));
            }
        };
        thread::scope(|scope| {
            for _ in 0..compile::AT_ONCE.min(tenants.len()) {
                scope.spawn(load);
            }
        });
    });
    loaded.into_iter().filter_map(|(_, code)| code.into_inner()).collect()
}
