//! What a tenant's outgoing HTTP requests share: which denials have been logged.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use crate::{sync::Mutex, tenant::TenantVersion};

/// Most denied hosts that are logged for one version of a tenant.
const MAX_LOGGED: usize = 100;

/// The shared part of one tenant's requests.
#[derive(Default)]
pub struct Requests {
    logged: Mutex<Logged>,
}

/// Which denials have been logged, and of which version.
#[derive(Default)]
struct Logged {
    version: Weak<TenantVersion>,
    denied: BTreeSet<(String, &'static str)>,
}

impl Requests {
    /// Whether a denial is to be logged: it has not been, of this version.
    pub fn is_news(&self, version: &Arc<TenantVersion>, host: &str, reason: &'static str) -> bool {
        let mut logged = self.logged.lock();
        if !std::ptr::eq(logged.version.as_ptr(), Arc::as_ptr(version)) {
            *logged = Logged { version: Arc::downgrade(version), denied: BTreeSet::new() };
        }
        logged.denied.len() < MAX_LOGGED && logged.denied.insert((host.to_owned(), reason))
    }
}
