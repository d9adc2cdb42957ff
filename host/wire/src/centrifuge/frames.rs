//! What a shard itself sends to a Centrifuge client, as whole WebSocket frames.

use std::time::Duration;

use crate::{
    MAX_CHANNELS,
    centrifuge::{Error, Subscribed, Unsubscribed, reply, reply::PING},
    frame,
};

pub fn ping() -> Vec<u8> {
    framed(|out| out.extend_from_slice(PING))
}

/// Whether a message is the answer to a ping.
pub fn is_pong(message: &[u8]) -> bool {
    message.trim_ascii() == PING
}

/// Answers `connect`: the client is let in and follows the channels in `given`.
pub fn connected(
    id: u32,
    client: &str,
    ping_interval: Duration,
    expires_seconds: Option<u32>,
    given: &[(&str, Subscribed)],
) -> Vec<u8> {
    // At least 1: 0 would mean that no pings come.
    let ping = u32::try_from(ping_interval.as_secs()).unwrap_or(u32::MAX).max(1);
    framed(|out| reply::connect(id, client, ping, expires_seconds, given, out))
}

/// Answers `subscribe`: the client follows the channel from now on.
pub fn subscribe(id: u32, subscribed: &Subscribed) -> Vec<u8> {
    framed(|out| reply::subscribe(id, subscribed, out))
}

/// Pushes a subscription that the tenant's code gives the client.
pub fn given(channel: &str, subscribed: &Subscribed) -> Vec<u8> {
    framed(|out| reply::subscribed_push(channel, subscribed, out))
}

/// Answers `subscribe` with an error: the client follows the channel already.
pub fn already(id: u32) -> Vec<u8> {
    framed(|out| reply::error(id, Error::AlreadySubscribed.code(), Error::AlreadySubscribed.message(), out))
}

/// Answers `subscribe` with an error: the client follows [`MAX_CHANNELS`] channels and may follow no more.
pub fn limit(id: u32) -> Vec<u8> {
    let message = format!("a client follows at most {MAX_CHANNELS} channels");
    framed(|out| reply::error(id, Error::LimitExceeded.code(), &message, out))
}

/// Answers `unsubscribe`.
pub fn unsubscribe(id: u32) -> Vec<u8> {
    framed(|out| reply::empty(id, "unsubscribe", out))
}

/// Pushes the end of a subscription that the client did not ask to end.
pub fn unsubscribed(channel: &str, why: Unsubscribed) -> Vec<u8> {
    framed(|out| reply::unsubscribed_push(channel, why.code(), why.reason(), out))
}

fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut text, mut out) = (Vec::new(), Vec::new());
    write(&mut text);
    frame::encode(frame::TEXT, &text, &mut out);
    out
}
