//! Why the relay ends a client's connection, and how each transport says so.

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
    /// What follows the client's position in this channel is no longer there.
    Gap(Arc<str>),
    /// Its replies do not fit into the tenant's budget, or it does not read them.
    Replies(&'static str),
    /// It follows as many channels as it may, and the tenant's code gives it one more.
    Channels(String),
    /// The time that the tenant's code gave it is over.
    Expired,
    /// It has not sent its first command in time (Centrifuge protocol).
    Stale,
    /// It has not answered a ping.
    NoPong,
    /// It sends more messages than its limits allow.
    TooMany,
    /// The memory that its tenant may have does not suffice for what it sends.
    Memory,
    /// The tenant's code closes it.
    Handler { code: u16, text: String },
    /// The Centrifuge protocol demands it.
    Centrifuge(Disconnect, String),
    /// It broke the WebSocket protocol.
    Violation(Violation),
    /// It closed the connection itself, with this code.
    Client(Option<u16>),
}

impl End {
    /// The value of the metric's label `reason`.
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
            Self::Memory => "memory",
            Self::Handler { .. } => "handler",
            Self::Centrifuge(..) | Self::Violation(Violation::Protocol(_)) => "protocol",
            Self::Violation(Violation::Utf8) => "utf8",
            Self::Violation(Violation::TooLarge) => "too_large",
            Self::Violation(Violation::Deflate) => "deflate",
            Self::Client(_) => "client",
        }
    }

    /// The manifest's key of the limit that was reached. `None`: no limit is the reason.
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
                let (code, text) = self.websocket_close();
                frame::close(code, &text)
            }
            Format::Centrifuge | Format::CentrifugeDeflated => {
                let (code, text) = self.centrifuge_close();
                frame::close(code, &text)
            }
            Format::Sse => self.event_stream_close(),
        }
    }

    /// The close code and text of a plain WebSocket (RFC 6455 section 7.4).
    fn websocket_close(&self) -> (u16, String) {
        let (code, text) = match self {
            Self::Shutdown => (1001, "the relay is shutting down"),
            Self::Tenant => (1001, "the tenant is no longer served here"),
            Self::Lagged(_) => (1013, "fell off the end of the channel's log"),
            Self::Gap(_) => (1013, "what was missed is no longer there"),
            Self::Replies(why) => (1013, *why),
            Self::Channels(why) => (1008, why.as_str()),
            Self::Expired => (1008, "the time that the handler gave is over"),
            Self::Stale => (1008, "the client did not send its first command in time"),
            Self::NoPong => (1008, "the client did not answer a ping"),
            Self::TooMany => (1013, "too many messages wait"),
            Self::Memory => (1013, "the tenant's memory is full"),
            Self::Handler { code, text } => (*code, text.as_str()),
            Self::Centrifuge(disconnect, why) => (disconnect.code(), why.as_str()),
            Self::Violation(violation) => return (violation.close_code(), violation.to_string()),
            Self::Client(code) => (code.unwrap_or(1000), ""),
        };
        (code, text.to_owned())
    }

    /// The close code and text of the Centrifuge protocol: its own codes where it has them.
    fn centrifuge_close(&self) -> (u16, String) {
        let disconnect = match self {
            Self::Shutdown | Self::Tenant => Disconnect::Shutdown,
            Self::Lagged(_) | Self::Replies(_) => Disconnect::Slow,
            Self::Gap(_) => Disconnect::InsufficientState,
            Self::Channels(_) => Disconnect::ChannelLimit,
            Self::Expired => Disconnect::Expired,
            Self::Stale => Disconnect::Stale,
            Self::NoPong => Disconnect::NoPong,
            Self::TooMany | Self::Memory => Disconnect::TooManyRequests,
            Self::Handler { code, text } => return (*code, readable(text)),
            Self::Centrifuge(disconnect, why) => return (disconnect.code(), readable(why)),
            Self::Violation(_) | Self::Client(_) => return self.websocket_close(),
        };
        (disconnect.code(), disconnect.reason().to_owned())
    }

    /// The last events of a stream. There are no close codes, so a comment tells the reason to a person who reads the
    /// stream.
    fn event_stream_close(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Self::Lagged(channel) | Self::Gap(channel) = self {
            sse::gap(channel, None, &mut out);
        }
        let (code, text) = self.websocket_close();
        let text: String = text.chars().filter(|character| !character.is_control()).collect();
        out.extend_from_slice(format!(": closed, {code} {text}\n\n").as_bytes());
        out
    }
}

/// A reason in a form that SDKs take for text. If a reason is empty, they reconnect whatever the code is. If it is
/// JSON, they take it for more than text.
fn readable(reason: &str) -> String {
    if reason.is_empty() {
        "disconnected".into()
    } else if serde_json::from_str::<IgnoredAny>(reason).is_ok() {
        format!("reason: {reason}")
    } else {
        reason.to_owned()
    }
}
