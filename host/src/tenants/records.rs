//! The store of all tenants' records, opened when a tenant first needs it.

use std::sync::Arc;

use config::StoreConfig;

use crate::{
    metrics::Metrics,
    store::{Keep, Store, StoreTasks, Unusable},
};

/// Where records are kept.
pub struct Records {
    /// `None`: nowhere.
    config: Option<StoreConfig>,
    open: Option<(Arc<Store>, StoreTasks)>,
}

impl Records {
    pub fn new(config: Option<StoreConfig>) -> Self {
        Self { config, open: None }
    }

    /// What is still to be opened.
    pub fn unopened(&self) -> Option<StoreConfig> {
        self.config.as_ref().filter(|_| self.open.is_none()).cloned()
    }

    /// Opens the store, if there is to be one. This blocks.
    pub fn open(&mut self, keep: Vec<Keep>, metrics: &Arc<Metrics>) -> Result<(), Unusable> {
        if let Some(config) = self.unopened() {
            self.open = Some(Store::open(config, keep, Arc::clone(metrics))?);
        }
        Ok(())
    }

    pub fn opened(&mut self, store: (Arc<Store>, StoreTasks)) {
        self.open = Some(store);
    }

    pub fn store(&self) -> Option<&Arc<Store>> {
        self.open.as_ref().map(|(store, _)| store)
    }

    /// Takes what runs for the store, to be shut down.
    pub fn into_tasks(self) -> Option<StoreTasks> {
        self.open.map(|(_, tasks)| tasks)
    }
}
