//! What the operator allows tenants to ask for: `[grants]` of `relay.toml`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use crate::grants::special_use::{covers, is_special};

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
        let fits = |allowed: &AllowedNetwork| covers(&allowed.network, network) && includes(&allowed.tenants, tenant);
        self.networks.iter().any(fits)
    }

    /// Where a tenant's upstreams may lead.
    pub(crate) fn reach(&self, tenant: &str) -> Reach {
        let listed = self.networks.iter().filter(|allowed| includes(&allowed.tenants, tenant));
        Reach::Listed(listed.map(|allowed| allowed.network).collect())
    }
}

/// Which addresses an upstream may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All: it is the operator's own.
    Anywhere,
    /// Public ones, and those in networks that the operator lists for the tenant.
    Listed(Vec<IpNet>),
}

/// An address that an upstream may not lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "leads to {0}, which is not on the public Internet; have the operator list it in relay.toml: \
     grants.networks = [\"{0}\"]"
)]
pub struct NotReached(IpAddr);

impl Reach {
    pub fn check(&self, address: IpAddr) -> Result<(), NotReached> {
        let address = address.to_canonical();
        let is_listed = match self {
            Self::Anywhere => true,
            Self::Listed(networks) => networks.iter().any(|listed| covers(listed, &address.into())),
        };
        if is_listed || !is_special(address) { Ok(()) } else { Err(NotReached(address)) }
    }
}

fn includes(tenants: &[String], tenant: &str) -> bool {
    tenants.is_empty() || tenants.iter().any(|name| name == tenant)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_leads_to_public_addresses_and_to_what_is_listed_for_its_tenant() {
        let listed = |network: &str, tenants: &[&str]| AllowedNetwork {
            network: network.parse().unwrap(),
            tenants: tenants.iter().map(ToString::to_string).collect(),
        };
        let networks = vec![
            listed("10.1.0.0/16", &[]),
            listed("10.2.0.0/16", &["other"]),
            listed("169.254.7.0/24", &[]),
            listed("0.0.0.0/0", &["t"]),
        ];
        let reach = Allowed { networks, ..Allowed::default() }.reach("t");
        let may = |reach: &Reach, address: &str| reach.check(address.parse().unwrap()).is_ok();
        for address in ["8.8.8.8", "10.1.2.3", "::ffff:10.1.2.3", "169.254.7.1", "127.0.0.1", "2606:4700::1111"] {
            assert!(may(&reach, address), "{address}");
        }
        for address in ["169.254.169.254", "::ffff:169.254.169.254", "::1", "fe80::1", "168.63.129.16"] {
            assert!(!may(&reach, address) && may(&Reach::Anywhere, address), "{address}");
        }
        let nobody = Allowed::default().reach("t");
        assert!(may(&nobody, "8.8.8.8") && !may(&nobody, "10.1.2.3"));
    }
}
