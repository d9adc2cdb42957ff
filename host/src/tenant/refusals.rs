//! The tenants that are refused now, and why: for `/readyz` and the metrics.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::sync::Mutex;

/// A tenant whose folder has what was refused.
#[derive(Clone, Debug)]
pub struct TenantRefused {
    /// The tenant's name if it runs, else its folder's.
    pub name: Arc<str>,
    /// Whether an earlier version runs.
    pub runs: bool,
    /// Everything that is wrong with it.
    pub why: String,
}

/// The refused tenants, by folder.
#[derive(Default)]
pub struct Refusals(Mutex<BTreeMap<PathBuf, TenantRefused>>);

impl Refusals {
    pub fn insert(&self, folder: &Path, refused: TenantRefused) {
        self.0.lock().insert(folder.into(), refused);
    }

    pub fn remove(&self, folder: &Path) {
        self.0.lock().remove(folder);
    }

    /// Why the tenant of a folder is refused.
    pub fn reason(&self, folder: &Path) -> Option<String> {
        self.0.lock().get(folder).map(|refused| refused.why.clone())
    }

    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub fn all(&self) -> Vec<TenantRefused> {
        self.0.lock().values().cloned().collect()
    }
}
