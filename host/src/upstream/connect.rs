//! Opening a connection to a partner: credentials, TCP, TLS where the URL asks, the WebSocket handshake, redirects.
//!
//! In comes what the manifest says; out comes a socket that is a WebSocket, or why there is none. Each connection has
//! its own look-up of the name, its own reading of secret files, and its own call of the dial component. Every address
//! is checked, that of a redirect, too.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use config::{Credential, PartnerUrl, TlsConfig, UpstreamConfig, UrlError, pem, secret};
use hyper::header::{HeaderName, HeaderValue, LOCATION};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::{
    account::Account,
    dial::{
        DialError, Dialer, Lookups, Server, ServerHost,
        switch::{Answered, NoAnswer, ask},
    },
    tls,
    tls::TlsError,
    upstream::{
        files::FileContents,
        handshake::{BadAnswer, Handshake},
        refusal::PartnerRefusal,
        socket::PartnerSocket,
    },
};

/// How long TCP, TLS and the WebSocket handshake may take together, with all redirects.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects of one connection.
const MAX_REDIRECTS: usize = 3;

/// A socket to a partner, or to whoever stands before it.
pub type Transport = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Makes path, query and headers for each connection: the tenant's dial component.
pub trait Credentials: Send + Sync {
    /// # Errors
    /// Why there are none.
    fn make(&self, attempt: Attempt) -> Pin<Box<dyn Future<Output = Result<MadeCredentials, String>> + Send>>;
}

/// What the dial component is told.
pub struct Attempt {
    pub upstream: Arc<str>,
    /// 1 for the first attempt after a connection that came about.
    pub number: u32,
    /// The URL of the manifest.
    pub url: String,
    /// The HTTP status that the attempt before was answered with. `None`: there was none, or no answer.
    pub last_status: Option<u16>,
}

/// What the dial component says.
#[derive(Default)]
pub struct MadeCredentials {
    /// `None`: the URL's.
    pub path: Option<String>,
    /// `None`: the URL's.
    pub query: Option<String>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It leads to an address that the tenant may not connect to.
    #[error("{0}")]
    NotAllowed(String),
    #[error("TLS handshake with {server}: {why}")]
    Tls { server: String, why: String },
    /// A file with a secret or a certificate cannot be used.
    #[error("{0}")]
    Secret(String),
    #[error("the dial component: {0}")]
    Component(String),
    #[error("{0}")]
    Refused(PartnerRefusal),
    #[error("the partner redirects with HTTP status {status} to {to}, which is not followed: {why}")]
    Redirect { status: u16, to: String, why: String },
    #[error("WebSocket handshake: {0}")]
    NoAnswer(#[from] NoAnswer),
    #[error(transparent)]
    Handshake(#[from] BadAnswer),
    #[error("the tenant's memory is full")]
    Memory,
}

impl ConnectError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Dial(DialError::Lookup { .. }) => "dns",
            Self::Dial(DialError::NotAllowed { .. }) | Self::NotAllowed(_) => "denied",
            Self::Dial(DialError::Tcp { error, .. }) => io_reason(error),
            Self::Dial(DialError::Proxy { .. }) => "proxy",
            Self::Tls { .. } => "tls",
            Self::Secret(_) => "secret",
            Self::Component(_) => "dial",
            Self::Refused(_) => "http_status",
            Self::Redirect { .. } => "redirect",
            Self::NoAnswer(error) => match error.io() {
                Some(error) if error.kind() == io::ErrorKind::InvalidData => "protocol",
                Some(error) => io_reason(error),
                None if error.is_end() => "reset",
                None => "protocol",
            },
            Self::Handshake(_) => "protocol",
            Self::Memory => "memory",
        }
    }
}

impl ConnectError {
    /// The HTTP status that the partner has answered with.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            Self::Redirect { status, .. } => Some(*status),
            _ => None,
        }
    }
}

fn io_reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::ConnectionReset => "reset",
        _ => "io",
    }
}

/// Opens connections. It is made once, because it holds the trusted roots.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
}

/// What a connection is opened with.
pub struct Dialing<'d> {
    pub config: &'d UpstreamConfig,
    pub dialer: &'d Dialer,
    pub lookups: &'d Lookups,
    pub account: &'d Arc<Account>,
    pub credentials: Option<&'d dyn Credentials>,
    pub number: u32,
    pub last_status: Option<u16>,
}

/// A connection that could not be opened.
pub struct NotOpened {
    pub error: ConnectError,
    /// The files as they were.
    pub files: FileContents,
}

/// What is sent to the partner's own origin, and to no other.
struct Request {
    url: PartnerUrl,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: Arc<ClientConfig>,
    /// The name that the certificate must have. `None`: the URL's host.
    server_name: Option<String>,
}

enum Opened {
    Socket(Box<PartnerSocket>),
    Redirected { status: u16, location: String },
}

impl Connector {
    pub fn new() -> Result<Self, TlsError> {
        Ok(Self { tls: tls::client()? })
    }

    pub async fn connect(&self, dialing: Dialing<'_>) -> Result<PartnerSocket, NotOpened> {
        let files = FileContents::read(dialing.config).await;
        match self.try_connect(&dialing, &files).await {
            Ok(socket) => Ok(socket),
            Err(error) => Err(NotOpened { error, files }),
        }
    }

    async fn try_connect(&self, dialing: &Dialing<'_>, files: &FileContents) -> Result<PartnerSocket, ConnectError> {
        let made = match dialing.credentials {
            Some(credentials) => {
                let attempt = Attempt {
                    upstream: Arc::clone(&dialing.config.name),
                    number: dialing.number,
                    url: dialing.config.url.as_str().to_owned(),
                    last_status: dialing.last_status,
                };
                credentials.make(attempt).await.map_err(ConnectError::Component)?
            }
            None => MadeCredentials::default(),
        };
        let request = self.request(dialing.config, files, made)?;
        timeout(CONNECT_TIMEOUT, self.follow(dialing, files, request)).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// Puts together what the manifest, the files and the dial component say.
    fn request(
        &self,
        config: &UpstreamConfig,
        files: &FileContents,
        made: MadeCredentials,
    ) -> Result<Request, ConnectError> {
        let value = |credential: &Credential| match credential {
            Credential::Plain(text) => Ok(text.clone()),
            Credential::Secret(secret) => Ok(secret.reveal().to_owned()),
            Credential::File(file) => {
                let content = files.of(file)?.to_owned();
                let read = secret(content).map_err(|error| format!("{}: {error}", file.path().display()))?;
                Ok(read.reveal().to_owned())
            }
        };
        let mut headers = Vec::with_capacity(config.headers.len() + made.headers.len());
        for (name, credential) in &config.headers {
            // What the dial component says is newer.
            if made.headers.iter().all(|(other, _)| other != name) {
                let text = value(credential).map_err(ConnectError::Secret)?;
                let mut value = config::header_value(&text)
                    .map_err(|why| ConnectError::Secret(format!("headers.{name}: what the file has {why}")))?;
                value.set_sensitive(!matches!(credential, Credential::Plain(_)));
                headers.push((name.clone(), value));
            }
        }
        headers.extend(made.headers);
        let query: Result<Vec<_>, _> =
            config.query.iter().map(|(name, credential)| Ok((name.clone(), value(credential)?))).collect();
        let query = query.map_err(ConnectError::Secret)?;
        let wrong = |error: UrlError| ConnectError::Component(format!("the URL {error}"));
        let url = config.url.with(made.path.as_deref(), made.query.as_deref(), &query).map_err(wrong)?;
        let tls = self.tls(&config.tls, files, true)?;
        Ok(Request { url, headers, tls, server_name: config.tls.server_name.clone() })
    }

    /// The settings of TLS. The client's own certificate is shown to no other origin.
    fn tls(&self, config: &TlsConfig, files: &FileContents, own: bool) -> Result<Arc<ClientConfig>, ConnectError> {
        let identity = config.certificate.as_ref().filter(|_| own);
        if config.roots.is_none() && identity.is_none() {
            return Ok(Arc::clone(&self.tls));
        }
        let roots = match &config.roots {
            Some(file) => {
                let found = pem::certificates(files.of(file).map_err(ConnectError::Secret)?);
                found.map_err(|error| ConnectError::Secret(format!("{} {error}", file.path().display())))?
            }
            None => Vec::new(),
        };
        let identity = identity.map(|(certificate, key)| {
            let chain = pem::certificates(files.of(certificate)?);
            let chain = chain.map_err(|error| format!("{} {error}", certificate.path().display()))?;
            let secret = pem::private_key(files.of(key)?);
            Ok((chain, secret.map_err(|error| format!("{} {error}", key.path().display()))?))
        });
        let identity = identity.transpose().map_err(ConnectError::Secret)?;
        tls::client_of(roots, identity).map_err(|error| {
            let why = match error {
                TlsError::Setup(error) => tls::explain(&error),
                error => error.to_string(),
            };
            ConnectError::Secret(why)
        })
    }

    /// Asks for the URL, and for those that the partner redirects to.
    async fn follow(
        &self,
        dialing: &Dialing<'_>,
        files: &FileContents,
        mut request: Request,
    ) -> Result<PartnerSocket, ConnectError> {
        let mut redirects = 0;
        loop {
            let (status, location) = match open(dialing, &request).await? {
                Opened::Socket(socket) => return Ok(*socket),
                Opened::Redirected { status, location } => (status, location),
            };
            let refused = |to: String, why: &str| ConnectError::Redirect { status, to, why: why.to_owned() };
            let unread = |error: UrlError| refused("a URL that cannot be read".into(), &format!("it {error}"));
            let next = request.url.redirected(&location).map_err(unread)?;
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(refused(next.to_string(), "these are too many redirects"));
            }
            if request.url.is_secure() && !next.is_secure() {
                return Err(refused(next.to_string(), "it is without TLS"));
            }
            if !request.url.has_same_origin(&next) {
                request.headers.clear();
                request.server_name = None;
                request.tls = self.tls(&dialing.config.tls, files, false)?;
            }
            request.url = next;
        }
    }
}

/// Asks one server.
async fn open(dialing: &Dialing<'_>, request: &Request) -> Result<Opened, ConnectError> {
    let Dialing { config, dialer, lookups, account, .. } = *dialing;
    let url = &request.url;
    let host = url.host().map_or_else(|name| ServerHost::Name(name.into()), ServerHost::Address);
    let server = Server { host, port: url.port(), secure: url.is_secure() };
    let dialed = dialer.open(&server, lookups, |address| config.reach.check(address).is_ok()).await;
    let tcp = dialed.map_err(|error| match error {
        DialError::NotAllowed { address } => {
            let why = config.reach.check(address).err().map_or_else(|| error.to_string(), |why| why.to_string());
            ConnectError::NotAllowed(format!("{server} {why}"))
        }
        error => error.into(),
    })?;
    let transport =
        if server.secure { Either::Right(Box::new(secure(tcp, &server, request).await?)) } else { Either::Left(tcp) };
    let handshake = Handshake::new(&config.subprotocols, config.compression);
    let asked = handshake.request(url, &request.headers);
    // A URL and headers that were checked make a request.
    let asked = asked.map_err(|error| ConnectError::Component(error.to_string()))?;
    let answered = ask(transport, asked).await.map_err(|error| match tls::find(&error) {
        Some(why) => ConnectError::Tls { server: server.to_string(), why: tls::explain(why) },
        None => error.into(),
    })?;
    match answered {
        Answered::Switched { head, stream, rest } => {
            let agreed = handshake.check(&head.headers)?;
            let socket = PartnerSocket::new(stream, rest, agreed, config.max_message, account);
            socket.map(|socket| Opened::Socket(Box::new(socket))).ok_or(ConnectError::Memory)
        }
        Answered::Refused(refusal) => {
            let status = refusal.head.status.as_u16();
            let location = refusal.head.headers.get(LOCATION).filter(|_| matches!(status, 301 | 302 | 307 | 308));
            match location {
                Some(location) => {
                    let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
                    Ok(Opened::Redirected { status, location })
                }
                None => Err(ConnectError::Refused(refusal.into())),
            }
        }
    }
}

/// Does the TLS handshake.
async fn secure(tcp: TcpStream, server: &Server, request: &Request) -> Result<TlsStream<TcpStream>, ConnectError> {
    let failed = |why: String| ConnectError::Tls { server: server.to_string(), why };
    let name = match (&request.server_name, &server.host) {
        (Some(name), _) | (None, ServerHost::Name(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            ServerName::try_from(name.to_owned()).map_err(|_| failed(format!("{name} is no name of a server")))?
        }
        (None, ServerHost::Address(address)) => ServerName::from(address.to_canonical()),
    };
    let connected = TlsConnector::from(Arc::clone(&request.tls)).connect(name, tcp).await;
    connected.map_err(|error| failed(tls::find(&error).map_or_else(|| error.to_string(), tls::explain)))
}
