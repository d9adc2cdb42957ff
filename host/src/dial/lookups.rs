//! Look-ups of names by the system's resolver, a bounded number at once.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::sync::Semaphore;

/// Most look-ups of one tenant at once. A look-up keeps its thread for as long as the name server makes it wait, even if
/// the attempt was given up. With more of them, one tenant's slow name server would take the threads from all.
const MAX_LOOKUPS: usize = 4;

/// The look-ups of one tenant.
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

impl Lookups {
    /// All addresses that the system's resolver gives for a name, at least one.
    pub async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let looked_up = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // A dot at the end says that no search domain is to be added. Name servers know that, files of hosts do not;
            // without it a search domain might be added after all. This machine is found there in any case (RFC 6761).
            let bare = name.strip_suffix('.').filter(|name| *name == "localhost" || name.ends_with(".localhost"));
            look_up(&name).or_else(|error| bare.map_or(Err(error), look_up))
        });
        looked_up.await?
    }
}

fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let found: Vec<_> = (name, 0).to_socket_addrs()?.map(|found| found.ip()).collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no addresses"));
    }
    Ok(found)
}
