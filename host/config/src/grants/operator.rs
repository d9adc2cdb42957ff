//! What the operator allows tenants to ask for: `[grants]` of `relay.toml`.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

/// What tenants may be granted. By default that is their own folders, to read only, and public servers.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Folders outside the tenants' own.
    pub folders: Vec<AllowedFolder>,
    /// Networks with addresses that are not public.
    pub networks: Vec<AllowedNetwork>,
    /// Host names that tenants may claim.
    pub hosts: Vec<AllowedHost>,
    /// Whether tenants may write in folders of their own.
    pub write: bool,
}

#[derive(Clone, Debug)]
pub struct AllowedHost {
    /// In lower case.
    pub host: String,
    /// The names of the tenants it is for. Empty: all.
    pub tenants: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct AllowedFolder {
    /// With links followed.
    pub path: PathBuf,
    pub write: bool,
    /// The names of the tenants it is for. Empty: all.
    pub tenants: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct AllowedNetwork {
    pub network: IpNet,
    /// The names of the tenants it is for. Empty: all.
    pub tenants: Vec<String>,
}

impl Allowed {
    /// Whether a tenant may be granted what is at `path`, which has its links followed.
    pub(crate) fn has_folder(&self, tenant: &str, path: &Path, write: bool) -> bool {
        self.folder_of(tenant, path, write).is_some()
    }

    /// The listed folder that has what is at `path`, if a tenant may be granted that.
    pub(crate) fn folder_of(&self, tenant: &str, path: &Path, write: bool) -> Option<&Path> {
        let covers = |folder: &&AllowedFolder| {
            path.starts_with(&folder.path) && (folder.write || !write) && includes(&folder.tenants, tenant)
        };
        self.folders.iter().find(covers).map(|folder| folder.path.as_path())
    }

    /// Whether a tenant may claim a host name.
    pub(crate) fn has_host(&self, tenant: &str, host: &str) -> bool {
        self.hosts.iter().any(|allowed| allowed.host == host && includes(&allowed.tenants, tenant))
    }

    /// Whether a tenant may be granted a whole network.
    pub(crate) fn has_network(&self, tenant: &str, network: &IpNet) -> bool {
        let covers = |allowed: &AllowedNetwork| allowed.network.contains(network) && includes(&allowed.tenants, tenant);
        self.networks.iter().any(covers)
    }
}

fn includes(tenants: &[String], tenant: &str) -> bool {
    tenants.is_empty() || tenants.iter().any(|name| name == tenant)
}
