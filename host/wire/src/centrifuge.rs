//! The Centrifuge client protocol, version 2, as JSON. The protocol's SDKs work unchanged.
//!
//! Source: `client.proto` of the protocol's own repository, in its JSON mapping, as spoken by the npm package
//! `centrifuge` 5.8.0. Both sides send WebSocket text messages that hold one or more JSON objects, one per line. A
//! client sends [`Command`]s. The relay sends replies ([`reply`]): an answer carries the `id` of its command, the
//! others are pushed. A ping is the empty object, and so is the pong.
//!
//! Not supported: protobuf, presence, joins and leaves, deltas, tag filters, map and shared-poll subscriptions.

use http::{
    Request as HttpRequest,
    header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL},
};

use crate::header::has_token;

mod command;
mod frames;
pub mod reply;

pub use crate::centrifuge::{
    command::{Command, Malformed, Recover, Request, decode},
    frames::{already, connected, given, is_pong, limit, ping, subscribe, unsubscribe, unsubscribed},
    reply::{Subscribed, publication},
};

/// The form of the protocol that a client chose, by its WebSocket subprotocol or by `format` in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The default.
    Json,
    NamedJson,
    Protobuf,
    NamedProtobuf,
}

const JSON: &str = "centrifuge-json";
const PROTOBUF: &str = "centrifuge-protobuf";

impl Protocol {
    pub fn of<T>(request: &HttpRequest<T>) -> Self {
        let offers = |name| has_token(request.headers(), &SEC_WEBSOCKET_PROTOCOL, name);
        let query = request.uri().query().unwrap_or_default();
        let mut query = form_urlencoded::parse(query.as_bytes());
        if offers(PROTOBUF) {
            Self::NamedProtobuf
        } else if offers(JSON) {
            Self::NamedJson
        } else if query.any(|(key, value)| matches!(&*key, "format" | "cf_protocol") && value == "protobuf") {
            Self::Protobuf
        } else {
            Self::Json
        }
    }

    /// The subprotocol to name in the handshake's answer. `None`: the client offered none.
    pub fn name(self) -> Option<HeaderValue> {
        match self {
            Self::NamedJson => Some(HeaderValue::from_static(JSON)),
            Self::NamedProtobuf => Some(HeaderValue::from_static(PROTOBUF)),
            Self::Json | Self::Protobuf => None,
        }
    }

    pub fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::NamedJson)
    }
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Internal,
    UnknownChannel,
    PermissionDenied,
    MethodNotFound,
    AlreadySubscribed,
    LimitExceeded,
    BadRequest,
    NotAvailable,
    TooManyRequests,
    UnrecoverablePosition,
}

impl Error {
    pub fn code(self) -> u32 {
        self.row().0
    }

    pub fn message(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (u32, &'static str) {
        match self {
            Self::Internal => (100, "internal server error"),
            Self::UnknownChannel => (102, "unknown channel"),
            Self::PermissionDenied => (103, "permission denied"),
            Self::MethodNotFound => (104, "method not found"),
            Self::AlreadySubscribed => (105, "already subscribed"),
            Self::LimitExceeded => (106, "limit exceeded"),
            Self::BadRequest => (107, "bad request"),
            Self::NotAvailable => (108, "not available"),
            Self::TooManyRequests => (111, "too many requests"),
            Self::UnrecoverablePosition => (112, "unrecoverable position"),
        }
    }
}

/// Why a connection is closed: code and reason of the WebSocket's close frame. Clients reconnect by themselves, except
/// after 3500 to 3999 and 4500 to 4999. The JavaScript SDK reconnects after those too if the reason is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    Shutdown,
    Internal,
    Expired,
    Slow,
    InsufficientState,
    NoPong,
    TooManyRequests,
    InvalidToken,
    BadRequest,
    Stale,
    ChannelLimit,
    PermissionDenied,
    NotAvailable,
}

impl Disconnect {
    pub fn code(self) -> u16 {
        self.row().0
    }

    pub fn reason(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (u16, &'static str) {
        match self {
            Self::Shutdown => (3001, "shutdown"),
            Self::Internal => (3004, "internal server error"),
            Self::Expired => (3005, "connection expired"),
            Self::Slow => (3008, "slow"),
            Self::InsufficientState => (3010, "insufficient state"),
            Self::NoPong => (3012, "no pong"),
            Self::TooManyRequests => (3013, "too many requests"),
            Self::InvalidToken => (3500, "invalid token"),
            Self::BadRequest => (3501, "bad request"),
            Self::Stale => (3502, "stale"),
            Self::ChannelLimit => (3505, "channel limit"),
            Self::PermissionDenied => (3507, "permission denied"),
            Self::NotAvailable => (3508, "not available"),
        }
    }
}

/// Why the server ends a subscription. After a code of 2500 or more, a client subscribes again by itself if it had
/// asked for the channel. A server-side subscription is gone after any code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    Server,
    InsufficientState,
}

impl Unsubscribed {
    fn code(self) -> u32 {
        match self {
            Self::Server => 2000,
            Self::InsufficientState => 2500,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Server => "server unsubscribe",
            Self::InsufficientState => "insufficient state",
        }
    }
}
