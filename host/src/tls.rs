//! TLS for connections that the relay opens, to upstreams and for guests' requests.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};

/// Reads the certificate roots that connections trust: the system's, or those in the file that `SSL_CERT_FILE` names.
/// What cannot be parsed is left out.
pub fn roots() -> Vec<CertificateDer<'static>> {
    let mut found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate root cannot be read");
    }
    found.certs.retain(|root| RootCertStore::empty().add(root.clone()).is_ok());
    found.certs
}

/// Trusts [`roots`]. They are read once per process.
pub fn client() -> Result<Arc<ClientConfig>, rustls::Error> {
    static CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(made) = CLIENT.get() {
        return Ok(Arc::clone(made));
    }
    let made = Arc::new(make()?);
    Ok(Arc::clone(CLIENT.get_or_init(|| made)))
}

fn make() -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(self::roots());
    if added == 0 {
        tracing::warn!("no certificate roots found: wss:// and https:// will fail; install ca-certificates");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
