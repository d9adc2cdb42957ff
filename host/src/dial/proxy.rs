//! Connections through an HTTP proxy: CONNECT (RFC 9110 section 9.3.6).

use std::{env, io, net::SocketAddr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use config::{ProxyConfig, ProxySource};
use http_body_util::Empty;
use hyper::{
    Request, Uri,
    header::{HOST, HeaderValue, PROXY_AUTHORIZATION},
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::{net::TcpStream, time::Instant};

use crate::dial::{
    DialError, Lookups, Server, ServerHost, race,
    switch::{Answered, Unanswered, ask},
};

/// The port of an `http://` URL without one.
const DEFAULT_PORT: u16 = 80;

/// The proxy that the operator has set, and what it is not for.
pub struct Proxy {
    matcher: Matcher,
    /// From the configuration. `None`: what the environment's URL has.
    credentials: Option<HeaderValue>,
    resolves: bool,
}

/// A variable whose proxy cannot be used. Without an error its connections would go out without a proxy.
#[derive(Debug, thiserror::Error)]
#[error("{0} in the environment names no proxy that is known here: write http://HOST:PORT")]
pub struct UnknownProxy(&'static str);

/// The environment's variables, each with its other spelling.
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NONE: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Why a proxy opened no connection.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{0}")]
    Connect(io::Error),
    #[error("no answer to CONNECT {to}: {error}")]
    Answer { to: String, error: Unanswered },
    #[error("it answered CONNECT {to} with HTTP status {status}{}", hint(*.status))]
    Refused { to: String, status: u16 },
    #[error("it sent something before it was asked")]
    Spoke,
    #[error("{0} is no host that it can be asked for")]
    Host(String),
}

fn hint(status: u16) -> &'static str {
    match status {
        403 => "; have it allow CONNECT to this host and port",
        401 | 407 => {
            "; give it credentials that it takes: proxy-credentials in relay.toml, or in the environment's URL"
        }
        _ => "",
    }
}

impl Proxy {
    /// `None`: the environment names none.
    pub fn new(config: &ProxyConfig) -> Result<Option<Self>, UnknownProxy> {
        let matcher = match &config.source {
            ProxySource::Url(url) => {
                Matcher::builder().all(url.clone()).no(exceptions(&config.no_proxy.join(","))).build()
            }
            ProxySource::Environment => {
                let (http, https, all) = (proxy_of(HTTP)?, proxy_of(HTTPS)?, proxy_of(ALL)?);
                if [&http, &https, &all].into_iter().all(String::is_empty) {
                    return Ok(None);
                }
                let no = variable(NONE).map(|(_, value)| value).unwrap_or_default();
                Matcher::builder().http(http).https(https).all(all).no(exceptions(&no)).build()
            }
        };
        let credentials = config.credentials.as_ref().and_then(|credentials| {
            let encoded = BASE64_STANDARD.encode(credentials.reveal());
            let mut value = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Some(Self { matcher, credentials, resolves: config.resolves }))
    }

    /// Whether it is asked for names.
    pub fn resolves(&self) -> bool {
        self.resolves
    }

    /// The way to a server through the proxy. `None`: it is connected to without.
    ///
    /// # Errors
    /// A host that cannot be told from others must not pass by the proxy.
    pub fn tunnel(&self, server: &Server) -> Result<Option<Tunnel>, DialError> {
        let scheme = if server.secure { "https" } else { "http" };
        let host = match &server.host {
            // Exceptions are written without the dot.
            ServerHost::Name(name) => name.trim_end_matches('.').to_owned(),
            ServerHost::Address(address) => SocketAddr::new(*address, 1).to_string().trim_end_matches(":1").to_owned(),
        };
        let uri = Uri::builder().scheme(scheme).authority(host).path_and_query("/").build();
        let unknown = |_| DialError::Proxy { proxy: String::new(), error: ProxyError::Host(server.to_string()) };
        let Some(proxy) = self.matcher.intercept(&uri.map_err(unknown)?) else { return Ok(None) };
        let credentials = self.credentials.clone().or_else(|| proxy.basic_auth().cloned());
        Ok(Some(Tunnel { proxy, credentials }))
    }
}

/// Exceptions as the matcher takes them: to it, `*` stands for all names, and not for addresses.
fn exceptions(listed: &str) -> String {
    let has_all = listed.split(',').any(|exception| exception.trim() == "*");
    if has_all { format!("{listed},0.0.0.0/0,::/0") } else { listed.to_owned() }
}

/// The first of these variables that is set, with its name.
fn variable(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    names.into_iter().find_map(|name| Some((name, env::var(name).ok().filter(|value| !value.is_empty())?)))
}

/// The proxy that a variable names. Empty: it is not set.
fn proxy_of(names: [&'static str; 2]) -> Result<String, UnknownProxy> {
    let Some((name, value)) = variable(names) else { return Ok(String::new()) };
    let any = Matcher::builder().all(value.clone()).build().intercept(&Uri::from_static("http://any.invalid/"));
    let is_known = any.is_some_and(|proxy| proxy.uri().scheme_str() == Some("http"));
    if is_known { Ok(value) } else { Err(UnknownProxy(name)) }
}

/// The way to one server.
pub struct Tunnel {
    proxy: Intercept,
    credentials: Option<HeaderValue>,
}

impl Tunnel {
    /// Asks for the first of these addresses that the proxy reaches.
    pub async fn open_first(&self, addresses: &[SocketAddr], lookups: &Lookups) -> Result<TcpStream, DialError> {
        let none = self.error(ProxyError::Connect(io::ErrorKind::NotFound.into()));
        race::first(addresses, |address| async move { self.open(&address.to_string(), lookups).await }, none).await
    }

    /// Asks for a host and port.
    pub async fn open(&self, to: &str, lookups: &Lookups) -> Result<TcpStream, DialError> {
        let stream = self.connect(lookups).await.map_err(|error| self.error(ProxyError::Connect(error)))?;
        self.ask(stream, to).await.map_err(|error| self.error(error))
    }

    /// Connects to the proxy, which is the operator's: no address of it is refused.
    async fn connect(&self, lookups: &Lookups) -> io::Result<TcpStream> {
        let uri = self.proxy.uri();
        let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => lookups.addresses(host).await?,
        };
        let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let stream = race::connect(&addresses).await?;
        // An error does no harm: the request may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn ask(&self, stream: TcpStream, to: &str) -> Result<TcpStream, ProxyError> {
        let mut request = Request::connect(to).header(HOST, to);
        if let Some(credentials) = &self.credentials {
            request = request.header(PROXY_AUTHORIZATION, credentials.clone());
        }
        // A host and a port are a request's target and a header's value.
        let request = request.body(Empty::new()).map_err(|error| ProxyError::Connect(io::Error::other(error)))?;
        let answered =
            ask(stream, request, Instant::now()).await.map_err(|error| ProxyError::Answer { to: to.into(), error })?;
        match answered {
            // Neither TLS nor HTTP lets the server speak first.
            Answered::Switched { rest, .. } if !rest.is_empty() => Err(ProxyError::Spoke),
            Answered::Switched { stream, .. } => Ok(stream),
            Answered::Refused(refusal) => {
                Err(ProxyError::Refused { to: to.into(), status: refusal.head.status.as_u16() })
            }
        }
    }

    fn error(&self, error: ProxyError) -> DialError {
        let proxy = self.proxy.uri().authority().map_or_else(String::new, ToString::to_string);
        DialError::Proxy { proxy, error }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn server(host: ServerHost) -> Server {
        Server { host, port: 443, secure: true }
    }

    #[test]
    fn exceptions_are_connected_to_without_it() {
        let no_proxy = ["example.com", "10.0.0.0/8", "::1", "2001:db8::/32"].map(String::from).to_vec();
        let source = ProxySource::Url("http://proxy.test:3128/".into());
        let proxy = Proxy::new(&ProxyConfig { source, credentials: None, no_proxy, resolves: false }).unwrap().unwrap();
        let name = |name: &str| ServerHost::Name(name.into());
        let address = |address: &str| ServerHost::Address(address.parse().unwrap());
        for host in
            [name("example.com"), name("a.example.com."), address("10.1.2.3"), address("::1"), address("2001:db8::7")]
        {
            assert!(proxy.tunnel(&server(host.clone())).unwrap().is_none(), "{host:?}");
        }
        for host in [name("example.org"), name("notexample.com"), address("11.0.0.1"), address("2001:db9::7")] {
            let tunnel = proxy.tunnel(&server(host.clone())).unwrap().unwrap();
            assert_eq!(tunnel.proxy.uri().authority().unwrap(), "proxy.test:3128", "{host:?}");
        }
        assert!(proxy.tunnel(&server(name("{example.com"))).is_err(), "nothing passes by it");
        assert_eq!((&*exceptions("a,10.0.0.0/8"), &*exceptions("a, *")), ("a,10.0.0.0/8", "a, *,0.0.0.0/0,::/0"));
    }
}
