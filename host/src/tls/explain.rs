//! What is wrong in a TLS handshake, with which certificate, and what to do about it.

use std::{
    error::Error as StdError,
    fmt, io,
    time::{Duration, UNIX_EPOCH},
};

use ring::digest::{SHA256, digest};
use rustls::{
    AlertDescription, CertificateError, Error,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Most names of a certificate that are shown.
const MAX_NAMES: usize = 5;

/// A server's certificate that is not trusted.
#[derive(Debug)]
pub struct Untrusted {
    /// The certificate's SHA-256, as `openssl x509 -noout -fingerprint -sha256` prints it, without colons.
    fingerprint: String,
    server: String,
    /// Whether it came with certificates of its issuers, which may be the ones that are meant.
    has_chain: bool,
    error: CertificateError,
}

impl Untrusted {
    pub fn new(
        certificate: &CertificateDer<'_>,
        has_chain: bool,
        server: &ServerName<'_>,
        error: CertificateError,
    ) -> Self {
        let bytes = digest(&SHA256, certificate);
        let fingerprint = bytes.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        Self { fingerprint, server: server.to_str().into_owned(), has_chain, error }
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fingerprint, server, has_chain, error } = self;
        let of_its_issuer = *has_chain
            && !matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. });
        let or = if of_its_issuer { ", or one of its issuers' that came with it," } else { "" };
        write!(f, "the certificate of {server} (SHA-256 {fingerprint}){or} ")?;
        let give_it =
            "if it is to be trusted, write it into a PEM file and name that: [upstream.tls] roots = \"partner.pem\"";
        match error {
            CertificateError::Expired => write!(f, "has expired; the partner has to renew it, or this clock is wrong"),
            CertificateError::ExpiredContext { not_after, .. } => {
                write!(f, "has expired on {}; the partner has to renew it, or this clock is wrong", date(*not_after))
            }
            CertificateError::NotValidYet => write!(f, "is not valid yet; is this clock right?"),
            CertificateError::NotValidYetContext { not_before, .. } => {
                write!(f, "is not valid before {}; is this clock right?", date(*not_before))
            }
            CertificateError::UnknownIssuer => {
                write!(f, "is issued by nobody who is trusted here; {give_it} (its issuer's does as well)")
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let shown: Vec<_> = presented.iter().take(MAX_NAMES).map(|name| printable(name)).collect();
                let names = if shown.is_empty() { "no name".to_owned() } else { shown.join(", ") };
                let more = if presented.len() > MAX_NAMES { " and more" } else { "" };
                let key = "[upstream.tls] server-name = \"…\"";
                write!(f, "is for {names}{more}; if that is the right server, write one of its names: {key}")
            }
            CertificateError::NotValidForName => {
                write!(
                    f,
                    "is for another name; if that is the right server, write it: [upstream.tls] server-name = \"…\""
                )
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                write!(f, "is not made for servers; the partner has to use another")
            }
            CertificateError::BadSignature => {
                write!(f, "is signed by another than the issuer of that name who is trusted here; {give_it}")
            }
            error if is_authority(error) => write!(f, "is self-signed; {give_it}"),
            error => write!(f, "cannot be used ({error:?}); the partner has to use another"),
        }
    }
}

impl StdError for Untrusted {}

/// Whether webpki refused the certificate because it is an authority's. Self-signed ones are made that way.
fn is_authority(error: &CertificateError) -> bool {
    match error {
        CertificateError::Other(other) => {
            matches!(other.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

/// One of a certificate's names, as rustls shows it (`DnsName("a.example")`), without what could pass for other lines.
fn printable(name: &str) -> String {
    let bare = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')')).trim_matches('"');
    bare.chars().take(100).flat_map(char::escape_debug).collect()
}

fn date(time: UnixTime) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

/// The error of TLS behind an error of the socket or of HTTP.
pub fn find<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref()));
        if tls.is_some() {
            return tls;
        }
        next = error.source();
    }
    None
}

/// What an error of the socket means during the handshake.
pub fn explain_io(error: &io::Error) -> String {
    let causes = "it may not speak TLS at this port, know no such name, or want a certificate of this side";
    format!("{error}; {causes}: see port, server-name, certificate and key of [upstream.tls]")
}

/// What an error of TLS means to the author of the URL.
pub fn explain(error: &Error) -> String {
    let own = "write one that it takes: [upstream.tls] certificate = \"own.pem\" and key = \"own.key\"";
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        Error::NoCertificatesPresented => "the partner shows no certificate".into(),
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate | AlertDescription::AccessDenied,
        ) => {
            format!("the partner wants a certificate of this side; {own}")
        }
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError),
        ) => {
            format!("the partner does not take this side's certificate ({alert:?}); {own}")
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the partner does not know this name; write the name that it has: [upstream.tls] server-name = \"…\"".into()
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(_) => {
            format!(
                "the partner has no version or cipher in common with TLS 1.2 and 1.3 here, or wants a certificate of this \
                 side ({error}); for that, {own}"
            )
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            "the partner does not speak TLS at this port; write its port for TLS, or ws:// if it has none".into()
        }
        Error::InconsistentKeys(_) => {
            "tls.key is not the key of tls.certificate; write the key that the certificate was made with".into()
        }
        error => error.to_string(),
    }
}
