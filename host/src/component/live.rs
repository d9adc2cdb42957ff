//! A role's code and what it runs with: replaced as a whole, between two calls.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Code, Guest};

/// What the next call runs. An instance is of one version: nothing is ever filtered by a mix of two.
pub struct Live<R>(ArcSwap<Version<R>>);

/// Code, and whose it is: settings, limits and grants belong to it.
pub struct Version<R> {
    pub code: Arc<Code<R>>,
    pub guest: Guest,
}

impl<R> Live<R> {
    pub fn new(code: Arc<Code<R>>, guest: Guest) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(Version { code, guest })))
    }

    /// The next call runs this; one under way is finished.
    pub fn swap(&self, code: Arc<Code<R>>, guest: Guest) {
        self.0.store(Arc::new(Version { code, guest }));
    }

    pub fn version(&self) -> Arc<Version<R>> {
        self.0.load_full()
    }

    /// Whether this is still what the next call runs.
    pub fn is(&self, version: &Arc<Version<R>>) -> bool {
        Arc::ptr_eq(&self.0.load(), version)
    }
}
