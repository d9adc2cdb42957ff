//! Why the relay ends a client's connection, and how each door says so.

use std::sync::Arc;

use serde::de::IgnoredAny;
use wire::{centrifuge::Disconnect, frame, frame::Violation, sse};

use crate::channel::Format;

/// Why a connection ends.
#[derive(Clone, Debug)]
pub enum End {
    /// The host is shutting down.
    Shutdown,
    /// Its tenant is no longer served here.
    Tenant,
    /// The client has fallen off this channel's log.
    Lagged(Arc<str>),
    /// What it would go on with in this channel is no longer there.
    Gap(Arc<str>),
    /// There is no room for its replies, or it does not take them.
    Replies(&'static str),
    /// It follows as many channels as it may, and the tenant's code gives it one more.
    Channels(String),
    /// Its time is over.
    Expired,
    /// It has not said who it is.
    Stale,
    /// It does not answer pings.
    NoPong,
    /// Its messages are more than wait.
    TooMany,
    /// The tenant's code says so.
    Handler { code: u16, text: String },
    /// The Centrifuge protocol says so.
    Centrifuge(Disconnect, String),
    /// It has broken the WebSocket protocol.
    Violation(Violation),
    /// It has closed itself, with this code.
    Client(Option<u16>),
}

impl End {
    /// The metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Tenant => "tenant",
            Self::Lagged(_) => "lagged",
            Self::Gap(_) => "gap",
            Self::Replies(_) => "replies",
            Self::Channels(_) => "channels",
            Self::Expired => "expired",
            Self::Stale => "stale",
            Self::NoPong => "no_pong",
            Self::TooMany => "too_many",
            Self::Handler { .. } => "handler",
            Self::Centrifuge(..) | Self::Violation(Violation::Protocol(_)) => "protocol",
            Self::Violation(Violation::Utf8) => "utf8",
            Self::Violation(Violation::TooLarge) => "too_large",
            Self::Violation(Violation::Deflate) => "deflate",
            Self::Client(_) => "client",
        }
    }

    /// The limit that is the reason, by its key in the manifest.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Violation(Violation::TooLarge) => Some("client-message"),
            Self::Replies(_) => Some("client-backlog"),
            _ => None,
        }
    }

    /// The last bytes that the client is sent.
    pub fn bytes(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Raw | Format::Deflated => {
                let (code, text) = self.of_websocket();
                frame::close(code, &text)
            }
            Format::Centrifuge | Format::CentrifugeDeflated => {
                let (code, text) = self.of_centrifuge();
                frame::close(code, &text)
            }
            Format::Sse => self.of_events(),
        }
    }

    /// RFC 6455 section 7.4.
    fn of_websocket(&self) -> (u16, String) {
        let (code, text) = match self {
            Self::Shutdown => (1001, "the relay is shutting down"),
            Self::Tenant => (1001, "the tenant is no longer served here"),
            Self::Lagged(_) => (1013, "fell off the end of the channel's log"),
            Self::Gap(_) => (1013, "what was missed is no longer there"),
            Self::Replies(why) => (1013, *why),
            Self::Channels(why) => (1008, why.as_str()),
            Self::Expired => (1008, "the time that the tenant's code gave is over"),
            Self::Stale => (1008, "it has not said who it is"),
            Self::NoPong => (1008, "pings are not answered"),
            Self::TooMany => (1013, "too many messages wait"),
            Self::Handler { code, text } => (*code, text.as_str()),
            Self::Centrifuge(disconnect, why) => (disconnect.code(), why.as_str()),
            Self::Violation(violation) => return (violation.close_code(), violation.to_string()),
            Self::Client(code) => (code.unwrap_or(1000), ""),
        };
        (code, text.to_owned())
    }

    /// The protocol's own codes where it has some.
    fn of_centrifuge(&self) -> (u16, String) {
        let disconnect = match self {
            Self::Shutdown | Self::Tenant => Disconnect::Shutdown,
            Self::Lagged(_) | Self::Replies(_) => Disconnect::Slow,
            Self::Gap(_) => Disconnect::InsufficientState,
            Self::Channels(_) => Disconnect::ChannelLimit,
            Self::Expired => Disconnect::Expired,
            Self::Stale => Disconnect::Stale,
            Self::NoPong => Disconnect::NoPong,
            Self::TooMany => Disconnect::TooManyRequests,
            Self::Handler { code, text } => return (*code, readable(text)),
            Self::Centrifuge(disconnect, why) => return (disconnect.code(), readable(why)),
            Self::Violation(_) | Self::Client(_) => return self.of_websocket(),
        };
        (disconnect.code(), disconnect.reason().to_owned())
    }

    /// An event stream has no codes; a comment tells whoever reads it by eye.
    fn of_events(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Self::Lagged(channel) | Self::Gap(channel) = self {
            sse::gap(channel, None, &mut out);
        }
        let (code, text) = self.of_websocket();
        let text: String = text.chars().filter(|character| !character.is_control()).collect();
        out.extend_from_slice(format!(": closed, {code} {text}\n\n").as_bytes());
        out
    }
}

/// A reason as SDKs read it: one that is empty makes them come again whatever the code, and JSON would be more than text.
fn readable(reason: &str) -> String {
    if reason.is_empty() {
        "disconnected".into()
    } else if serde_json::from_str::<IgnoredAny>(reason).is_ok() {
        format!("reason: {reason}")
    } else {
        reason.to_owned()
    }
}
