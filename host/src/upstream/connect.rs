//! Opening a connection to a partner: TCP, TLS where the URL asks, the WebSocket handshake.

use std::{io, sync::Arc, time::Duration};

use config::UpstreamConfig;
use hyper::{
    Uri,
    header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL},
};
use rustls::ClientConfig;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls_with_config, tungstenite,
    tungstenite::{client::IntoClientRequest, protocol::WebSocketConfig},
};

use crate::{
    account::Account,
    dial, tls,
    upstream::last_read::{LastRead, Listening},
};

/// How long TCP, TLS and the WebSocket handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub type PartnerSocket = WebSocketStream<MaybeTlsStream<Listening<TcpStream>>>;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("{address}: {error}")]
    Tcp { address: String, error: io::Error },
    #[error("TLS handshake with {address}: {error}")]
    Tls { address: String, error: io::Error },
    #[error("the partner answered the handshake with HTTP status {0}")]
    HttpStatus(u16),
    #[error("WebSocket handshake: {0}")]
    Handshake(#[from] Box<tungstenite::Error>),
}

impl ConnectError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Tcp { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused => "refused",
            Self::Tcp { error, .. } if error.kind() == io::ErrorKind::ConnectionReset => "reset",
            Self::Tcp { .. } => "io",
            Self::Tls { .. } => "tls",
            Self::HttpStatus(_) => "http_status",
            Self::Handshake(error) => super::session::reason(error),
        }
    }
}

/// Opens connections. It is made once, because it holds the trusted roots.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
}

impl Connector {
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self { tls: tls::client()? })
    }

    /// What is read of it counts on the tenant's account.
    pub async fn connect(
        &self,
        config: &UpstreamConfig,
        account: &Arc<Account>,
    ) -> Result<(PartnerSocket, LastRead), ConnectError> {
        timeout(CONNECT_TIMEOUT, self.open(config, account)).await.unwrap_or(Err(ConnectError::Timeout))
    }

    async fn open(
        &self,
        config: &UpstreamConfig,
        account: &Arc<Account>,
    ) -> Result<(PartnerSocket, LastRead), ConnectError> {
        let (address, secure) = address(&config.url);
        let tcp_error = |error| ConnectError::Tcp { address: address.clone(), error };
        // Asked anew for each connection: partners move.
        let addresses: Vec<_> = lookup_host(&address).await.map_err(tcp_error)?.collect();
        let tcp = dial::connect(&addresses).await.map_err(tcp_error)?;
        tcp.set_nodelay(true).map_err(tcp_error)?;
        let mut request = config.url.clone().into_client_request().map_err(Box::new)?;
        let headers = request.headers_mut();
        for (name, value) in &config.headers {
            headers.append(name, value.clone());
        }
        if !config.subprotocols.is_empty()
            && let Ok(offered) = HeaderValue::from_str(&config.subprotocols.join(", "))
        {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, offered);
        }
        let limits = WebSocketConfig::default()
            .max_message_size(Some(config.max_message))
            .max_frame_size(Some(config.max_message));
        let tls = tokio_tungstenite::Connector::Rustls(Arc::clone(&self.tls));
        let last_read = LastRead::now(account);
        match client_async_tls_with_config(request, Listening::new(tcp, last_read.clone()), Some(limits), Some(tls))
            .await
        {
            Ok((socket, _)) => Ok((socket, last_read)),
            Err(tungstenite::Error::Http(response)) => Err(ConnectError::HttpStatus(response.status().as_u16())),
            Err(tungstenite::Error::Io(error)) if secure && is_tls(&error) => Err(ConnectError::Tls { address, error }),
            Err(tungstenite::Error::Io(error)) => Err(ConnectError::Tcp { address, error }),
            Err(error) => Err(Box::new(error).into()),
        }
    }
}

/// Returns host and port, and whether the URL asks for TLS.
fn address(url: &Uri) -> (String, bool) {
    let secure = url.scheme_str() == Some("wss");
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    (format!("{}:{port}", url.host().unwrap_or_default()), secure)
}

fn is_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
