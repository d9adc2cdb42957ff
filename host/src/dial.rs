//! The ways out: TCP connections to partners and to the servers that guests ask, straight or through a proxy.
//!
//! In comes a host with a port; out comes a connected socket. A name is looked up anew for each connection, since
//! servers move. The caller says which addresses it allows. Every address that a name leads to is checked, and the
//! connection goes to one that was checked. Several addresses are tried as RFC 8305 has it ([`race`]). With a proxy, the
//! same addresses are checked, and the proxy is asked for one of them; or, if the operator says so, for the name.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
};

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

mod lookups;
pub mod proxy;
mod race;
pub mod switch;

pub use crate::dial::lookups::Lookups;
use crate::dial::proxy::{Proxy, ProxyError};

/// A server to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub host: ServerHost,
    pub port: u16,
    /// Whether TLS is to be spoken. It decides which of the environment's proxies counts.
    pub secure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerHost {
    /// In lower case.
    Name(String),
    Address(IpAddr),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the name {name} is not found: {error}")]
    Lookup { name: String, error: io::Error },
    /// The name leads to this address, or it is the host itself, and the caller does not allow it.
    #[error("{address} is not allowed")]
    NotAllowed { address: IpAddr },
    #[error("{to}: {error}")]
    Tcp { to: String, error: io::Error },
    #[error("proxy {proxy}: {error}")]
    Proxy { proxy: String, error: ProxyError },
}

/// Opens connections.
#[derive(Default)]
pub struct Dialer {
    proxy: Option<Proxy>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ServerHost::Name(name) => write!(f, "{name}:{}", self.port),
            ServerHost::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

impl Server {
    /// The name that a certificate must have. `None`: no certificate can have it.
    pub fn tls_name(&self) -> Option<ServerName<'static>> {
        match &self.host {
            ServerHost::Name(name) => tls_name(name),
            ServerHost::Address(address) => Some(ServerName::from(address.to_canonical())),
        }
    }
}

/// A host's name as a certificate has it: without the dot that may end it.
pub fn tls_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.strip_suffix('.').unwrap_or(name).to_owned()).ok()
}

impl Dialer {
    pub fn new(proxy: Option<Proxy>) -> Self {
        Self { proxy }
    }

    /// Connects to a server at an address that `allows` takes.
    pub async fn open(
        &self,
        server: &Server,
        lookups: &Lookups,
        allows: impl Fn(IpAddr) -> bool,
    ) -> Result<TcpStream, DialError> {
        let stream = self.connect(server, lookups, allows).await?;
        // An error does no harm: small messages may wait for others.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn connect(
        &self,
        server: &Server,
        lookups: &Lookups,
        allows: impl Fn(IpAddr) -> bool,
    ) -> Result<TcpStream, DialError> {
        let tunnel = self.proxy.as_ref().map(|proxy| proxy.tunnel(server)).transpose()?.flatten();
        let by_name = self.proxy.as_ref().is_some_and(Proxy::resolves) && matches!(server.host, ServerHost::Name(_));
        if let Some(tunnel) = tunnel.as_ref().filter(|_| by_name) {
            return tunnel.open(&server.to_string(), lookups).await;
        }
        let addresses = match &server.host {
            ServerHost::Name(name) => {
                let looked_up = lookups.addresses(name).await;
                looked_up.map_err(|error| DialError::Lookup { name: name.clone(), error })?
            }
            ServerHost::Address(address) => vec![*address],
        };
        if let Some(address) = addresses.iter().copied().find(|address| !allows(*address)) {
            return Err(DialError::NotAllowed { address });
        }
        let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, server.port)).collect();
        match tunnel {
            Some(tunnel) => tunnel.open_first(&addresses, lookups).await,
            None => {
                let connected = race::connect(&addresses).await;
                connected.map_err(|error| DialError::Tcp { to: server.to_string(), error })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    fn server(host: ServerHost, port: u16) -> Server {
        Server { host, port, secure: false }
    }

    #[tokio::test]
    async fn every_address_is_asked_about() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (dialer, lookups) = (Dialer::default(), Lookups::default());
        for host in [ServerHost::Name("localhost".into()), ServerHost::Address(Ipv4Addr::LOCALHOST.into())] {
            let server = server(host, port);
            assert!(dialer.open(&server, &lookups, |address| address.is_loopback()).await.is_ok());
            let refused = dialer.open(&server, &lookups, |_| false).await;
            assert!(matches!(&refused, Err(DialError::NotAllowed { address }) if address.is_loopback()), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_name_may_end_in_a_dot() {
        let lookups = Lookups::default();
        assert!(lookups.addresses("localhost.").await.unwrap().iter().all(IpAddr::is_loopback));
        assert!(lookups.addresses("nowhere.invalid.").await.is_err());
    }
}
