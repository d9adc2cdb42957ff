//! A role's code and what it runs with: replaced as a whole, between two calls.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::component::{Guest, RoleCode};

/// What the next call runs. An instance is of one version: nothing is ever filtered by a mix of two.
pub struct Live<R> {
    version: ArcSwap<RoleVersion<R>>,
    /// Notified at each swap. The role's only worker waits for it.
    swapped: Notify,
}

/// A role's code and its guest, whose settings, limits and grants belong to that code.
pub struct RoleVersion<R> {
    pub code: Arc<RoleCode<R>>,
    pub guest: Guest,
}

impl<R> Live<R> {
    pub fn new(code: Arc<RoleCode<R>>, guest: Guest) -> Arc<Self> {
        Arc::new(Self { version: ArcSwap::from_pointee(RoleVersion { code, guest }), swapped: Notify::new() })
    }

    /// The next call runs this; one under way is finished.
    pub fn swap(&self, code: Arc<RoleCode<R>>, guest: Guest) {
        self.version.store(Arc::new(RoleVersion { code, guest }));
        self.swapped.notify_one();
    }

    /// Returns when there has been a swap since it last did.
    pub async fn swapped(&self) {
        self.swapped.notified().await;
    }

    pub fn version(&self) -> Arc<RoleVersion<R>> {
        self.version.load_full()
    }

    /// Whether this is still what the next call runs.
    pub fn is(&self, version: &Arc<RoleVersion<R>>) -> bool {
        Arc::ptr_eq(&self.version.load(), version)
    }
}
