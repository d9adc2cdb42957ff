//! Why a connection to a partner could not be opened.

use std::{io, time::Duration};

use crate::{
    dial::{DialError, switch::Unanswered},
    upstream::{connect::CONNECT_TIMEOUT, handshake::BadAnswer, refusal::PartnerRefusal},
};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It says what has not come about.
    #[error("{what} within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout { what: String },
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It leads to an address that the tenant may not connect to.
    #[error("{0}")]
    NotAllowed(String),
    #[error("TLS handshake with {server}: {why}")]
    Tls { server: String, why: String },
    /// A file with a secret or a certificate cannot be used, or what is in it makes no request.
    #[error("{0}")]
    Secret(String),
    #[error("the dial component: {0}")]
    Component(String),
    #[error("{0}")]
    Refused(PartnerRefusal),
    #[error("{refusal}, which points to {to} and is not followed: {why}")]
    Redirect { refusal: PartnerRefusal, to: String, why: String },
    #[error("WebSocket handshake: {0}")]
    Unanswered(#[from] Unanswered),
    #[error(transparent)]
    Handshake(#[from] BadAnswer),
    #[error("the tenant's memory is full")]
    Memory,
}

impl ConnectError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Dial(DialError::Lookup { .. }) => "dns",
            Self::Dial(DialError::NotAllowed { .. }) | Self::NotAllowed(_) => "denied",
            Self::Dial(DialError::Tcp { error, .. }) => io_reason(error),
            Self::Dial(DialError::Proxy { .. }) => "proxy",
            Self::Tls { .. } => "tls",
            Self::Secret(_) => "secret",
            Self::Component(_) => "dial",
            Self::Refused(_) => "http_status",
            Self::Redirect { .. } => "redirect",
            Self::Unanswered(error) => match error.io() {
                Some(error) if error.kind() == io::ErrorKind::InvalidData => "protocol",
                Some(error) => io_reason(error),
                None if error.is_end() => "reset",
                None => "protocol",
            },
            Self::Handshake(_) => "protocol",
            Self::Memory => "memory",
        }
    }

    /// The HTTP status that the partner has answered with.
    pub fn status(&self) -> Option<u16> {
        self.refusal().map(|refusal| refusal.status)
    }

    /// How long the partner asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal()?.retry_after
    }

    /// Whether another attempt is of no use until someone has done something about the credentials or the URL.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Secret(_)) || matches!(self.status(), Some(401 | 403 | 404))
    }

    fn refusal(&self) -> Option<&PartnerRefusal> {
        match self {
            Self::Refused(refusal) | Self::Redirect { refusal, .. } => Some(refusal),
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
