//! What a shard itself says to a client of the Centrifuge protocol, as whole WebSocket frames.

use std::time::Duration;

use crate::{
    MAX_CHANNELS,
    centrifuge::{Error, Subscribed, Unsubscribed, reply},
    frame,
};

/// A ping; its answer is the same.
const PING: &[u8] = b"{}";

pub fn ping() -> Vec<u8> {
    framed(|out| out.extend_from_slice(PING))
}

/// Whether a message is the answer to a ping.
pub fn is_pong(message: &[u8]) -> bool {
    message.trim_ascii() == PING
}

/// A client is let in, to these channels.
pub fn connected(
    id: u32,
    client: &str,
    ping_interval: Duration,
    expires_seconds: Option<u32>,
    given: &[(&str, Subscribed)],
) -> Vec<u8> {
    // Not 0, which would mean that none come.
    let ping = u32::try_from(ping_interval.as_secs()).unwrap_or(u32::MAX).max(1);
    framed(|out| reply::connect(id, client, ping, expires_seconds, given, out))
}

/// A client follows a channel that it has asked for.
pub fn subscribe(id: u32, subscribed: &Subscribed) -> Vec<u8> {
    framed(|out| reply::subscribe(id, subscribed, out))
}

/// It follows one that the tenant's code gives it.
pub fn given(channel: &str, subscribed: &Subscribed) -> Vec<u8> {
    framed(|out| reply::subscribed_push(channel, subscribed, out))
}

/// It follows it already.
pub fn already(id: u32) -> Vec<u8> {
    framed(|out| reply::error(id, Error::AlreadySubscribed.code(), Error::AlreadySubscribed.message(), out))
}

/// It follows as many as it may.
pub fn limit(id: u32) -> Vec<u8> {
    let message = format!("a client follows at most {MAX_CHANNELS} channels");
    framed(|out| reply::error(id, Error::LimitExceeded.code(), &message, out))
}

/// It follows a channel no longer, as it has asked.
pub fn unsubscribe(id: u32) -> Vec<u8> {
    framed(|out| reply::empty(id, "unsubscribe", out))
}

/// It follows a channel no longer, without having asked.
pub fn unsubscribed(channel: &str, why: Unsubscribed) -> Vec<u8> {
    framed(|out| reply::unsubscribed_push(channel, why.code(), why.reason(), out))
}

fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut text, mut out) = (Vec::new(), Vec::new());
    write(&mut text);
    frame::encode(frame::TEXT, &text, &mut out);
    out
}
