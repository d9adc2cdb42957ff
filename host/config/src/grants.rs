//! What a tenant's components may reach outside their sandbox. By default that is nothing. The manifest can grant what
//! is public or the tenant's own. Anything else needs the operator's permission too.
//!
//! Tenants write manifests, the operator writes `relay.toml`. [`Grants`] is what a manifest asks for, checked against
//! what the operator has [`Allowed`]. The only question left at run time is where a name leads.

use std::path::PathBuf;

mod destinations;
mod folder;
mod operator;
mod secret;
mod special_use;

pub(crate) use crate::grants::{
    destinations::Port,
    folder::{is_no_proc, meet, real_path},
    operator::{AllowedFolder, AllowedHost},
    special_use::overlaps_special,
};
pub use crate::grants::{
    destinations::{Destination, Destinations},
    folder::Folder,
    operator::{Allowed, AllowedNetwork, NotReached, Reach},
    secret::Secret,
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
    /// What `wasi:config` shows besides the settings.
    pub secrets: Vec<(String, Secret)>,
    /// The files that secrets were read from.
    pub files: Vec<PathBuf>,
}

impl Grants {
    /// The same grants without any right to write.
    pub fn read_only(&self) -> Self {
        let mut grants = self.clone();
        grants.folders.iter_mut().for_each(|folder| folder.write = false);
        grants
    }
}
