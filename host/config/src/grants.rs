//! What a tenant's components may reach outside their sandbox: nothing, unless the manifest says so; and nothing that is not
//! the tenant's own or public, unless the operator allows it too.
//!
//! Manifests are written by tenants, `relay.toml` by the operator. [`Grants`] is what a manifest asks for, once it has been
//! held against what the operator has [`Allowed`]; there is nothing left to decide at run time but where a name leads to.

use std::path::PathBuf;

mod destinations;
mod folder;
mod operator;
mod secret;
mod special_use;

pub use crate::grants::{
    destinations::{Destination, Destinations, Port},
    folder::{Folder, meet, real_path},
    operator::{Allowed, AllowedFolder, AllowedHost, AllowedNetwork},
    secret::Secret,
    special_use::overlaps_special,
};

/// `[grants]` of a manifest.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    /// What `wasi:filesystem` shows.
    pub folders: Vec<Folder>,
    /// Where `wasi:http` requests may go.
    pub http: Destinations,
    /// What `wasi:cli/environment` shows.
    pub environment: Vec<(String, Secret)>,
    /// What `wasi:config` shows beside the settings.
    pub secrets: Vec<(String, Secret)>,
    /// Where secrets were read from.
    pub files: Vec<PathBuf>,
}

impl Grants {
    /// The same, but nothing can be written.
    pub fn read_only(&self) -> Self {
        let mut grants = self.clone();
        grants.folders.iter_mut().for_each(|folder| folder.write = false);
        grants
    }
}
