//! Opening a connection to a partner: TCP, TLS where the URL asks, the WebSocket handshake, redirects.
//!
//! In comes what the manifest says; out comes a socket that is a WebSocket, or why there is none. Each connection has
//! its own look-up of the name, its own reading of secret files, and its own call of the dial component. Every address
//! is checked, that of a redirect, too.

use std::{sync::Arc, time::Duration};

use config::{UpstreamConfig, UrlError};
use hyper::header::LOCATION;
use rustls::ClientConfig;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::{
    account::Account,
    dial::{
        DialError, Dialer, Lookups, Server, ServerHost,
        switch::{Answered, PlainAnswer, ask},
        tls_name,
    },
    tls,
    tls::TlsError,
    upstream::{
        failure::ConnectError,
        files::FileContents,
        handshake::Handshake,
        refusal::PartnerRefusal,
        request::{Credentials, DialAttempt, MadeCredentials, PartnerRequest},
        socket::PartnerSocket,
    },
};

/// How long TCP, TLS and the WebSocket handshake may take together, with all redirects; and how long reading files may
/// take before.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left of it when the body of an answer is read no further.
const BODY_MARGIN: Duration = Duration::from_millis(100);
/// Most redirects of one connection.
const MAX_REDIRECTS: usize = 3;
/// The redirects that keep the request's method (RFC 9110 section 15.4), and those that browsers keep it for.
const FOLLOWED: [u16; 4] = [301, 302, 307, 308];

/// A socket to a partner.
pub type PartnerStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Opens connections. It is made once, because it holds the trusted roots.
#[derive(Clone)]
pub struct Connector {
    roots: Arc<ClientConfig>,
}

/// What a connection is opened with.
pub struct Dialing<'d> {
    pub config: &'d UpstreamConfig,
    pub dialer: &'d Dialer,
    pub lookups: &'d Lookups,
    pub account: &'d Arc<Account>,
    pub credentials: Option<&'d dyn Credentials>,
    /// One permit to read the upstream's files.
    pub reading: &'d Arc<Semaphore>,
    pub number: u32,
    pub last_status: Option<u16>,
}

/// A connection that could not be opened.
pub struct NotOpened {
    pub error: ConnectError,
    /// The files as they were.
    pub files: FileContents,
}

enum Opened {
    Socket(Box<PartnerSocket>),
    /// The URL that the partner points to.
    Elsewhere(PlainAnswer, String),
}

impl Connector {
    pub fn new() -> Result<Self, TlsError> {
        Ok(Self { roots: tls::client()? })
    }

    pub async fn connect(&self, dialing: Dialing<'_>) -> Result<PartnerSocket, NotOpened> {
        let read = timeout(CONNECT_TIMEOUT, FileContents::read(dialing.config, dialing.reading)).await;
        let Ok(files) = read else {
            let error = ConnectError::Secret("the files with its secrets could not be read in time".into());
            return Err(NotOpened { error, files: FileContents::default() });
        };
        match self.try_connect(&dialing, &files).await {
            Ok(socket) => Ok(socket),
            Err(error) => Err(NotOpened { error, files }),
        }
    }

    async fn try_connect(&self, dialing: &Dialing<'_>, files: &FileContents) -> Result<PartnerSocket, ConnectError> {
        let made = match dialing.credentials {
            Some(credentials) => {
                let attempt = DialAttempt {
                    upstream: Arc::clone(&dialing.config.name),
                    number: dialing.number,
                    url: dialing.config.url.as_str().to_owned(),
                    last_status: dialing.last_status,
                };
                credentials.make(attempt).await.map_err(ConnectError::Component)?
            }
            None => MadeCredentials::default(),
        };
        let request = PartnerRequest::new(dialing.config, files, made, &self.roots)?;
        self.follow(dialing, files, request, Instant::now() + CONNECT_TIMEOUT).await
    }

    /// Asks for the URL, and for those that the partner redirects to.
    async fn follow(
        &self,
        dialing: &Dialing<'_>,
        files: &FileContents,
        mut request: PartnerRequest,
        deadline: Instant,
    ) -> Result<PartnerSocket, ConnectError> {
        let mut redirects = 0;
        loop {
            let (refusal, location) = match open(dialing, &request, deadline).await? {
                Opened::Socket(socket) => return Ok(*socket),
                Opened::Elsewhere(refusal, location) => (PartnerRefusal::from(refusal), location),
            };
            let next = match request.url.redirected(&location) {
                Ok(next) => next,
                Err(error) => return Err(not_followed(refusal, &location, &error)),
            };
            redirects += 1;
            let why = if !FOLLOWED.contains(&refusal.status) {
                "only 301, 302, 307 and 308 are"
            } else if redirects > MAX_REDIRECTS {
                "these are too many redirects"
            } else if request.url.is_secure() && !next.is_secure() {
                "it is without TLS"
            } else {
                request.redirect(next, &dialing.config.tls, files, &self.roots)?;
                continue;
            };
            return Err(ConnectError::Redirect { refusal, to: next.to_string(), why: why.into() });
        }
    }
}

/// A redirect to what cannot be dialed. The query is not shown, since it may have keys in it.
fn not_followed(refusal: PartnerRefusal, location: &str, error: &UrlError) -> ConnectError {
    let shown = location.split(['?', '#']).next().unwrap_or_default();
    // Nor is a user's password.
    let shown = match shown.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
        Some((scheme, Some((_, rest)))) => format!("{scheme}://{rest}"),
        _ => shown.to_owned(),
    };
    let shown: String = shown.chars().take(200).flat_map(char::escape_debug).collect();
    ConnectError::Redirect { refusal, to: format!("\"{shown}\""), why: format!("the URL {error}") }
}

/// Asks one server.
async fn open(dialing: &Dialing<'_>, request: &PartnerRequest, deadline: Instant) -> Result<Opened, ConnectError> {
    let Dialing { config, dialer, lookups, account, .. } = *dialing;
    let url = &request.url;
    let host = url.host().map_or_else(|name| ServerHost::Name(name.into()), ServerHost::Address);
    let server = Server { host, port: url.port(), secure: url.is_secure() };
    let late = |what: &str| ConnectError::Timeout { what: format!("{what} {server}") };
    let dialing = dialer.open(&server, lookups, |address| config.reach.check(address).is_ok());
    let dialed = timeout_at(deadline, dialing).await.map_err(|_| late("no connection to"))?;
    let tcp = dialed.map_err(|error| match error {
        DialError::NotAllowed { address } => {
            let why = config.reach.check(address).err().map_or_else(|| error.to_string(), |why| why.to_string());
            ConnectError::NotAllowed(format!("{server} {why}"))
        }
        error => error.into(),
    })?;
    let shown = config.tls.certificate.as_ref().map(|(file, _)| file.path());
    let failed = |error: &rustls::Error| {
        let mut why = tls::explain(error);
        if let (Some(file), rustls::Error::AlertReceived(_)) = (shown, error) {
            why = format!("{why} ({} is what it has)", file.display());
        }
        ConnectError::Tls { server: server.to_string(), why }
    };
    let transport = if server.secure {
        let name = request.server_name.as_deref().map_or_else(|| server.tls_name(), tls_name);
        let unnamed = || ConnectError::Tls { server: server.to_string(), why: "it is no name of a server".into() };
        let connecting = TlsConnector::from(Arc::clone(&request.tls)).connect(name.ok_or_else(unnamed)?, tcp);
        let secure = timeout_at(deadline, connecting).await.map_err(|_| late("no end of the TLS handshake with"))?;
        let secure = secure.map_err(|error| match tls::find(&error) {
            Some(why) => failed(why),
            None => ConnectError::Tls { server: server.to_string(), why: tls::explain_io(&error) },
        })?;
        Either::Right(Box::new(secure))
    } else {
        Either::Left(tcp)
    };
    let handshake = Handshake::new(&config.subprotocols, config.compression);
    // A URL and headers that were checked make a request.
    let asked = handshake.request(url, &request.headers).map_err(|error| ConnectError::Secret(error.to_string()))?;
    let asking = timeout_at(deadline, ask(transport, asked, deadline - BODY_MARGIN)).await;
    let answered =
        asking.map_err(|_| late("no answer to the WebSocket handshake by"))?.map_err(|error| {
            match tls::find(&error) {
                Some(why) => failed(why),
                None => error.into(),
            }
        })?;
    match answered {
        Answered::Switched { head, stream, rest } => {
            let agreed = handshake.check(&head.headers)?;
            let socket = PartnerSocket::new(stream, rest, agreed, config.max_message, account);
            socket.map(|socket| Opened::Socket(Box::new(socket))).ok_or(ConnectError::Memory)
        }
        Answered::Refused(refusal) => match refusal.head.headers.get(LOCATION) {
            Some(location) if refusal.head.status.is_redirection() => {
                let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
                Ok(Opened::Elsewhere(refusal, location))
            }
            _ => Err(ConnectError::Refused(refusal.into())),
        },
    }
}
