//! What a tenant's guests have asked for in vain, as far as it has been logged.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use crate::{sync::Mutex, tenant::TenantVersion};

/// Most denials that are logged for one version of a tenant.
const MAX_LOGGED: usize = 100;

/// What all instances of one tenant have asked for in vain: hosts that are not granted, settings that are not there.
#[derive(Default)]
pub struct Denials {
    logged: Mutex<Logged>,
}

/// Which denials have been logged, and of which version.
#[derive(Default)]
struct Logged {
    version: Weak<TenantVersion>,
    denied: BTreeSet<(String, &'static str)>,
}

impl Denials {
    /// Whether a denial is to be logged: it has not been, of this version.
    pub fn is_news(&self, version: &Arc<TenantVersion>, name: &str, reason: &'static str) -> bool {
        let mut logged = self.logged.lock();
        if !std::ptr::eq(logged.version.as_ptr(), Arc::as_ptr(version)) {
            *logged = Logged { version: Arc::downgrade(version), denied: BTreeSet::new() };
        }
        logged.denied.len() < MAX_LOGGED && logged.denied.insert((name.to_owned(), reason))
    }
}
