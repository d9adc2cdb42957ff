//! The store of all tenants' records, opened when a tenant first needs it.

use std::{path::PathBuf, sync::Arc};

use config::StoreConfig;

use crate::{
    metrics::Metrics,
    store::{Keep, OpenError, Store, StoreTasks},
};

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("the store {} cannot be used: {error}", .path.display())]
pub struct StoreUnusable {
    path: PathBuf,
    error: OpenError,
}

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
    pub fn open(&mut self, keep: Vec<Keep>, metrics: &Arc<Metrics>) -> Result<(), StoreUnusable> {
        if let Some(config) = self.unopened() {
            self.open = Some(open(config, keep, metrics)?);
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

/// Opens a store, and makes its folder if need be. This blocks.
pub fn open(
    config: StoreConfig,
    keep: Vec<Keep>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Store>, StoreTasks), StoreUnusable> {
    let path = config.file.clone();
    let folder_made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder_made
        .map_err(OpenError::from)
        .and_then(|()| Store::open(config, keep, Arc::clone(metrics)))
        .map_err(|error| StoreUnusable { path, error })
}
