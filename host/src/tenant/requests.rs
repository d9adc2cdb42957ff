//! What a tenant's outgoing HTTP requests share: look-ups of names, and which denials have been logged.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, Weak},
};

use tokio::sync::Semaphore;

use crate::{sync::Mutex, tenant::TenantVersion};

/// Most look-ups of one tenant at once. A look-up keeps its thread for as long as the name server makes it wait, even if
/// the request has been given up. With more of them, one tenant's slow name server would take the threads from all.
const MAX_LOOKUPS: usize = 4;

/// Most denied hosts that are logged for one version of a tenant.
const MAX_LOGGED: usize = 100;

/// The shared part of one tenant's requests.
pub struct Requests {
    lookups: Arc<Semaphore>,
    logged: Mutex<Logged>,
}

/// Which denials have been logged, and of which version.
#[derive(Default)]
struct Logged {
    version: Weak<TenantVersion>,
    denied: BTreeSet<(String, &'static str)>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)), logged: Mutex::default() }
    }
}

impl Requests {
    /// All addresses that the system's resolver gives for a name.
    pub async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let looked_up = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            Ok((name.as_str(), 0).to_socket_addrs()?.map(|found| found.ip()).collect())
        });
        looked_up.await?
    }

    /// Whether a denial is to be logged: it has not been, of this version.
    pub fn is_news(&self, version: &Arc<TenantVersion>, host: &str, reason: &'static str) -> bool {
        let mut logged = self.logged.lock();
        if !std::ptr::eq(logged.version.as_ptr(), Arc::as_ptr(version)) {
            *logged = Logged { version: Arc::downgrade(version), denied: BTreeSet::new() };
        }
        logged.denied.len() < MAX_LOGGED && logged.denied.insert((host.to_owned(), reason))
    }
}
