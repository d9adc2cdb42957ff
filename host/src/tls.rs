//! TLS for connections that the relay opens, to upstreams and for guests' requests.

use std::{
    env, fs, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use config::pem::{PemError, certificates};
use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer},
};

mod explain;
mod verifier;

pub use crate::tls::explain::{explain, explain_io, find};
use crate::tls::verifier::Verifier;

/// The variable that names a file of roots, in the place of the system's.
const FILE: &str = "SSL_CERT_FILE";

/// Why there are no roots, or TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{FILE}: {} cannot be read ({error})", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{FILE}: {} {error}", path.display())]
    Pem { path: PathBuf, error: PemError },
    #[error("{FILE}: {} has no certificate that can be a root", path.display())]
    NoRoot { path: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The certificate roots that connections trust: the system's, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
/// They are read once.
pub fn roots() -> Result<&'static [CertificateDer<'static>], TlsError> {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    if let Some(read) = ROOTS.get() {
        return Ok(read);
    }
    let read = read_roots()?;
    Ok(ROOTS.get_or_init(|| read))
}

/// What is no root is left out.
fn read_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let is_root = |root: &CertificateDer<'static>| RootCertStore::empty().add(root.clone()).is_ok();
    let named = env::var_os(FILE).map(PathBuf::from);
    let mut found = match &named {
        Some(path) => {
            let file = fs::read(path).map_err(|error| TlsError::Unreadable { path: path.clone(), error })?;
            let found = certificates(&file).map_err(|error| TlsError::Pem { path: path.clone(), error })?;
            if !found.iter().any(is_root) {
                return Err(TlsError::NoRoot { path: path.clone() });
            }
            found
        }
        None => Vec::new(),
    };
    let others = match (&named, env::var_os("SSL_CERT_DIR").filter(|folders| !folders.is_empty())) {
        (Some(_), None) => None,
        (Some(_), Some(folders)) => {
            let mut loaded = rustls_native_certs::CertificateResult::default();
            for folder in env::split_paths(&folders) {
                let mut more = rustls_native_certs::load_certs_from_paths(None, Some(&folder));
                loaded.certs.append(&mut more.certs);
                loaded.errors.append(&mut more.errors);
            }
            Some(loaded)
        }
        (None, _) => Some(rustls_native_certs::load_native_certs()),
    };
    for error in others.iter().flat_map(|others| &others.errors) {
        tracing::warn!(%error, "a certificate root cannot be read");
    }
    found.extend(others.into_iter().flat_map(|others| others.certs));
    found.retain(is_root);
    Ok(found)
}

/// The roots of the process, for webpki.
fn root_store() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots()?.iter().cloned());
    if added == 0 {
        tracing::warn!("no certificate roots found: wss:// and https:// will fail; install ca-certificates");
    }
    Ok(store)
}

/// Trusts the roots of the process. It is made once.
pub fn client() -> Result<Arc<ClientConfig>, TlsError> {
    static CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(made) = CLIENT.get() {
        return Ok(Arc::clone(made));
    }
    let made = client_of(Vec::new(), None)?;
    Ok(Arc::clone(CLIENT.get_or_init(|| made)))
}

/// A client's certificate with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Trusts `more` besides the roots of the process, and has a certificate of its own to show.
pub fn client_of(
    more: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(verifier(more, &provider)?);
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    Ok(Arc::new(match identity {
        Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        None => config.with_no_client_auth(),
    }))
}

fn verifier(more: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
    let mut roots = root_store()?;
    roots.add_parsable_certificates(more.iter().cloned());
    // webpki's builder refuses to make one that trusts nobody.
    let webpki = match roots.is_empty() {
        true => None,
        false => Some(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build()?),
    };
    Ok(Verifier { webpki, given: more, algorithms: provider.signature_verification_algorithms })
}
