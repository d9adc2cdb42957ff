//! What a partner is asked for: the URL, headers and TLS settings of one connection.
//!
//! They are put together from the manifest, from secret files, which are read anew, and from what the tenant's dial
//! component makes.

use std::{pin::Pin, sync::Arc};

use config::{Credential, PartnerUrl, TlsConfig, UpstreamConfig, pem, secret};
use hyper::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;

use crate::{
    tls,
    tls::TlsError,
    upstream::{failure::ConnectError, files::FileContents},
};

/// Makes path, query and headers for each connection: the tenant's dial component.
pub trait Credentials: Send + Sync {
    /// # Errors
    /// Why there are none.
    fn make(&self, attempt: DialAttempt) -> Pin<Box<dyn Future<Output = Result<MadeCredentials, String>> + Send>>;

    /// Which version of it makes them now.
    fn version(&self) -> u64;

    /// Returns when another version than this one makes them.
    fn changed(&self, version: u64) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What the dial component is told.
pub struct DialAttempt {
    pub upstream: Arc<str>,
    /// 1 for the first attempt after a connection that came about.
    pub number: u32,
    /// The URL of the manifest.
    pub url: String,
    /// The HTTP status of the partner's last answer since the last connection.
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

/// What is asked for. All but the URL is for the partner's own origin, and for no other.
pub struct PartnerRequest {
    pub url: PartnerUrl,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub tls: Arc<ClientConfig>,
    /// The name that the certificate must have. `None`: the URL's host.
    pub server_name: Option<String>,
}

impl PartnerRequest {
    /// `roots`: the TLS settings of an upstream that has none of its own.
    pub fn new(
        config: &UpstreamConfig,
        files: &FileContents,
        made: MadeCredentials,
        roots: &Arc<ClientConfig>,
    ) -> Result<Self, ConnectError> {
        let mut headers = Vec::with_capacity(config.headers.len() + made.headers.len());
        for (name, credential) in &config.headers {
            // What the dial component says is newer.
            if made.headers.iter().all(|(other, _)| other != name) {
                headers.push((name.clone(), header(name, credential, files)?));
            }
        }
        headers.extend(made.headers);
        let query: Result<Vec<_>, ConnectError> =
            config.query.iter().map(|(name, credential)| Ok((name.clone(), value(credential, files)?))).collect();
        let url = config.url.with(made.path.as_deref(), made.query.as_deref(), &query?).map_err(|error| {
            let why = format!("the URL {error}");
            if made.path.is_some() || made.query.is_some() {
                ConnectError::Component(why)
            } else {
                ConnectError::Secret(format!("{why}, with `query`"))
            }
        })?;
        let tls = tls(&config.tls, files, roots, true)?;
        Ok(Self { url, headers, tls, server_name: config.tls.server_name.clone() })
    }

    /// Goes to another URL. Another origin gets no credentials.
    pub fn redirect(
        &mut self,
        url: PartnerUrl,
        config: &TlsConfig,
        files: &FileContents,
        roots: &Arc<ClientConfig>,
    ) -> Result<(), ConnectError> {
        if !self.url.has_same_origin(&url) {
            self.headers.clear();
            self.server_name = None;
            self.tls = tls(config, files, roots, false)?;
        }
        self.url = url;
        Ok(())
    }
}

fn value(credential: &Credential, files: &FileContents) -> Result<String, ConnectError> {
    match credential {
        Credential::Plain(text) => Ok(text.clone()),
        Credential::Secret(secret) => Ok(secret.reveal().to_owned()),
        Credential::File(file) => {
            let content = files.of(file).map_err(ConnectError::Secret)?.to_owned();
            let read = secret(content);
            let read = read.map_err(|error| ConnectError::Secret(format!("{}: {error}", file.path().display())))?;
            Ok(read.reveal().to_owned())
        }
    }
}

fn header(name: &HeaderName, credential: &Credential, files: &FileContents) -> Result<HeaderValue, ConnectError> {
    let mut value = config::header_value(&value(credential, files)?)
        .map_err(|why| ConnectError::Secret(format!("headers.{name}: what the file has {why}")))?;
    value.set_sensitive(!matches!(credential, Credential::Plain(_)));
    Ok(value)
}

/// The settings of TLS. The client's own certificate is shown to no other origin.
fn tls(
    config: &TlsConfig,
    files: &FileContents,
    roots: &Arc<ClientConfig>,
    own: bool,
) -> Result<Arc<ClientConfig>, ConnectError> {
    let identity = config.certificate.as_ref().filter(|_| own);
    if config.roots.is_none() && identity.is_none() {
        return Ok(Arc::clone(roots));
    }
    let trusted = match &config.roots {
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
    tls::client_of(trusted, identity.transpose().map_err(ConnectError::Secret)?).map_err(|error| {
        ConnectError::Secret(match error {
            TlsError::Setup(error) => tls::explain(&error),
            error => error.to_string(),
        })
    })
}
