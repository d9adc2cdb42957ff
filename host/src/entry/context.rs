//! Where a request at the clients' listener leads: to a tenant's transport, or to what a channel has published.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use hyper::Request;
use percent_encoding::percent_decode_str;

use crate::{
    component::Tasks,
    delivery::{Mailbox, Shards, shard::Newcomer},
    entry::Proxies,
    fair_pool::{FairPool, Most, Sharer},
    host_header::host_of,
    metrics::Metrics,
    routes::{Route, Routes},
};

/// Most requests that read channels at once. Each holds a page of a mebibyte or two, or of one large publication.
pub const MAX_READS: usize = 64;

/// What every handshake needs to know.
pub struct EntryContext {
    pub routes: Arc<Routes>,
    pub proxies: Proxies,
    pub metrics: Arc<Metrics>,
    pub shards: Arc<Shards>,
    /// Clients whose handshake is done, and that their shards have not been told of yet.
    pub arrived: Mailbox<Newcomer>,
    /// How many clients the host has now, and may have.
    pub total: Arc<AtomicUsize>,
    pub max_clients: usize,
    pub max_handshakes: usize,
    /// Places of handshakes under way: an address's until the tenant is known.
    pub handshakes: Arc<FairPool<Sharer>>,
    /// Places of requests that wait until their tenant has fewer handshakes under way.
    pub waiting: Arc<FairPool<Sharer>>,
    pub handshake_timeout: Duration,
    /// Places of requests that read channels, by tenant and by address. Each is held until its answer is sent.
    pub reads: Arc<FairPool<Sharer>>,
    pub readers: Arc<FairPool<Sharer>>,
    /// Runs the Centrifuge commands of clients whose tenant has no handler.
    pub commands: Tasks,
}

/// What the rest of a path, after the tenant's own, leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Entrance {
    /// `/`: a plain WebSocket.
    Raw,
    /// `/sse`: server-sent events.
    Sse,
    /// `/connection/websocket`: the Centrifuge protocol.
    Centrifuge,
    /// `/channels/NAME` or `/channels/NAME/snapshot`: what was published. The name is percent-encoded in the path.
    Channel { name: String, snapshot: bool },
}

impl EntryContext {
    /// How many places of a pool an address may have. A proxy stands for all who come through it.
    pub fn most_of(&self, address: IpAddr) -> Most {
        if self.proxies.trust(address) { Most::All } else { Most::Own(usize::MAX) }
    }

    /// The tenant that a request is for, and what the rest of its path leads to.
    pub fn find<B>(&self, request: &Request<B>) -> Option<(Arc<Route>, Entrance)> {
        self.routes.find(host_of(request).as_deref(), request.uri().path(), Entrance::read)
    }
}

impl Entrance {
    /// A slash at the end of a transport's path makes no difference.
    fn read(path: &str) -> Option<Self> {
        if let Some(name) = path.strip_prefix("/channels/") {
            let (name, snapshot) = name.strip_suffix("/snapshot").map_or((name, false), |name| (name, true));
            let name = percent_decode_str(name).decode_utf8().ok().filter(|_| !name.contains('/'))?.into_owned();
            return Some(Self::Channel { name, snapshot });
        }
        match path.strip_suffix('/').unwrap_or(path) {
            "" => Some(Self::Raw),
            "/sse" => Some(Self::Sse),
            "/connection/websocket" => Some(Self::Centrifuge),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::context::{
        Entrance,
        Entrance::{Centrifuge, Channel, Raw, Sse},
    };

    #[test]
    fn what_a_path_leads_to() {
        let channel = |name: &str, snapshot| Some(Channel { name: name.into(), snapshot });
        let cases = [
            ("", Some(Raw)),
            ("/", Some(Raw)),
            ("/sse", Some(Sse)),
            ("/sse/", Some(Sse)),
            ("/connection/websocket", Some(Centrifuge)),
            ("/connection", None),
            ("-other", None),
            ("/channels/a%2Fb", channel("a/b", false)),
            ("/channels/a/snapshot", channel("a", true)),
            ("/channels/a/b", None),
            ("/channels/%ff", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Entrance::read(path), expected, "{path}");
        }
    }
}
