//! Why a request got no answer, and which error of `wasi:http` the guest gets.

use std::{error::Error as _, io};

use wasmtime_wasi_http::Error;

use crate::{
    component::imports::outbound::target::Denied,
    dial::{DialError, Server, proxy::ProxyError},
    tenant::OutboundRefused,
};

#[derive(Debug)]
pub enum RequestFailure {
    Denied(Denied),
    Limited(OutboundRefused),
    /// The operator's proxy opens no connection there. It said so with this HTTP status, if any.
    Proxy {
        to: String,
        status: Option<u16>,
    },
    Code(Error),
}

impl RequestFailure {
    /// The value of the metric's label `outcome`.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Limited(_) => "limited",
            Self::Proxy { .. } => "proxy",
            Self::Code(Error::DnsError { .. } | Error::DnsTimeout) => "dns",
            Self::Code(Error::ConnectionRefused | Error::DestinationUnavailable) => "refused",
            Self::Code(Error::ConnectionTimeout | Error::ConnectionReadTimeout | Error::HttpResponseTimeout) => {
                "timeout"
            }
            Self::Code(Error::TlsProtocolError | Error::TlsCertificateError | Error::TlsAlertReceived { .. }) => "tls",
            Self::Code(Error::HttpRequestUriInvalid | Error::HttpRequestMethodInvalid) => "invalid",
            Self::Code(_) => "broken",
        }
    }
}

impl From<OutboundRefused> for RequestFailure {
    fn from(refused: OutboundRefused) -> Self {
        Self::Limited(refused)
    }
}

impl From<RequestFailure> for Error {
    fn from(failure: RequestFailure) -> Self {
        match failure {
            RequestFailure::Denied(Denied::Private(_)) => Self::DestinationIpProhibited,
            RequestFailure::Denied(_) => Self::HttpRequestDenied,
            RequestFailure::Limited(_) => Self::ConnectionLimitReached,
            RequestFailure::Proxy { .. } => Self::DestinationUnavailable,
            RequestFailure::Code(error) => error,
        }
    }
}

/// What the operator is told when the proxy opens no connection.
pub fn by_proxy(status: Option<u16>) -> &'static str {
    match status {
        None => "the proxy of relay.toml cannot be reached, or does not answer CONNECT",
        Some(403) => "the proxy of relay.toml refuses it (403); have it allow CONNECT to this host and port",
        Some(401 | 407) => "the proxy of relay.toml wants other credentials; give it some that it takes",
        Some(_) => "the proxy of relay.toml answers CONNECT with an error",
    }
}

/// The failure for a connection that was not opened.
pub fn dialing(server: &Server, error: DialError) -> RequestFailure {
    RequestFailure::Code(match error {
        DialError::Lookup { error, .. } => {
            let why = if error.kind() == io::ErrorKind::NotFound {
                "the name has no address"
            } else {
                "the name was not found"
            };
            Error::DnsError { rcode: Some(why.into()), info_code: None }
        }
        DialError::NotAllowed { .. } => return RequestFailure::Denied(Denied::Private(server.to_string())),
        DialError::Proxy { error, .. } => {
            let status = if let ProxyError::Refused { status, .. } = error { Some(status) } else { None };
            return RequestFailure::Proxy { to: server.to_string(), status };
        }
        DialError::Tcp { error, .. } => match error.kind() {
            io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            _ => Error::DestinationUnavailable,
        },
    })
}

/// The failure for an error in the TLS handshake.
pub fn securing(error: &io::Error) -> RequestFailure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    RequestFailure::Code(match tls {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            Error::TlsAlertReceived { alert_id: Some(u8::from(*alert)), alert_message: Some(format!("{alert:?}")) }
        }
        Some(_) => Error::TlsProtocolError,
        None => Error::ConnectionTerminated,
    })
}

/// The guest's error for an error of HTTP, while the request is sent or its answer arrives.
pub fn exchanging(error: &hyper::Error) -> Error {
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else if error.is_canceled() || error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>()) {
        Error::ConnectionTerminated
    } else {
        Error::HttpProtocolError
    }
}
