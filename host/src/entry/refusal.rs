//! What a refused request at the clients' listener is answered: the status, the reason, and when to come again.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use rand::seq::IndexedRandom;
use wire::{NotAPosition, sse};

use crate::{
    channel::Refused,
    component::{Broken, NotLetIn},
    http_error,
};

/// Seconds after which a client that found the relay full may try again. One of them is drawn, so that not all clients
/// come back at once. They are short, since the relay lets in a herd of ten thousand within a second or two.
const RETRY_SECONDS: [&str; 2] = ["1", "2"];

/// Why a request is refused. `reason` is the code in the answer, and the metric's label.
pub struct Refusal {
    status: StatusCode,
    pub reason: &'static str,
    message: String,
    headers: Vec<(HeaderName, &'static str)>,
}

impl Refusal {
    pub fn new(status: StatusCode, reason: &'static str, message: &str) -> Self {
        // Set here and not in hyper, which would add it to a successful handshake's answer, too.
        Self { status, reason, message: message.to_owned(), headers: vec![(CONNECTION, "close")] }
    }

    pub fn unavailable(reason: &'static str, message: &str) -> Self {
        Self::for_now(StatusCode::SERVICE_UNAVAILABLE, reason, message)
    }

    pub fn shutdown() -> Self {
        Self::unavailable("shutdown", "the relay is shutting down")
    }

    /// Refuses a client for a limit that it reached itself. An `EventSource` is not asked to come again.
    pub fn too_many(reason: &'static str, message: &str) -> Self {
        Self::for_now(StatusCode::TOO_MANY_REQUESTS, reason, message)
    }

    fn for_now(status: StatusCode, reason: &'static str, message: &str) -> Self {
        let seconds = RETRY_SECONDS.choose(&mut rand::rng()).copied().unwrap_or("1");
        Self::new(status, reason, message).with(RETRY_AFTER, seconds)
    }

    /// The refusal of a client that the handler did not let in.
    pub fn by_handler(why: NotLetIn) -> Self {
        match why {
            NotLetIn::Refused(status, message) => Self::new(error_status(status), "rejected", &message),
            NotLetIn::Broken(Broken::Deadline(..)) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "handler", "the tenant's code did not answer in time")
            }
            NotLetIn::Broken(Broken::Memory | Broken::Mappings) => {
                Self::unavailable("memory", "the tenant's memory is full")
            }
            NotLetIn::Broken(Broken::HostMemory) => {
                Self::unavailable("memory", "the relay has no memory for the client")
            }
            NotLetIn::Broken(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "handler", "the tenant's code broke"),
            NotLetIn::Gone => Self::shutdown(),
        }
    }

    pub fn channel(why: Refused, name: &str) -> Self {
        let status = match why {
            Refused::NotAllowed => StatusCode::FORBIDDEN,
            Refused::Channels(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, "channel", &channel_message(why, name))
    }

    /// Turns a parameter `since` that is not a position into a refusal.
    pub fn check_position<T>(parsed: Result<T, NotAPosition>) -> Result<T, Self> {
        parsed.map_err(|NotAPosition| Self::bad_position("since is not a position, which is EPOCH:OFFSET"))
    }

    pub fn bad_position(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "position", message)
    }

    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = http_error::answer(self.status, self.reason, &self.message);
        for (name, value) in &self.headers {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    /// The answer for an `EventSource`, which never reconnects after an error. If the client may come again, because
    /// the fault is not its own, it gets a stream that ends at once.
    pub fn event_stream(&self) -> Response<Full<Bytes>> {
        if !self.status.is_server_error() {
            return self.response();
        }
        let after = self.headers.iter().find(|(name, _)| name == RETRY_AFTER);
        let seconds = after.map_or(RETRY_SECONDS[1], |(_, seconds)| seconds);
        let message: String = self.message.chars().filter(|character| !character.is_control()).collect();
        let mut response = Response::new(Full::from(format!("retry: {seconds}000\n: {message}\n\n")));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
        http_error::not_kept(response.headers_mut());
        response
    }
}

/// The status with which a handler refuses a client. One that is no error's becomes 403.
pub fn error_status(status: u16) -> StatusCode {
    let status = StatusCode::from_u16(status).ok();
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    status.unwrap_or(StatusCode::FORBIDDEN)
}

pub fn channel_message(why: Refused, name: &str) -> String {
    format!("channel {:.80}: {why}", format!("{name:?}"))
}
