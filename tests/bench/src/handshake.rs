//! The opening handshake (RFC 6455, section 4), with only as much HTTP as it needs.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha1::{Digest, Sha1};
use wire::sse::CONTENT_TYPE;

use crate::failure::{Context, Failure};

/// The key of every client here, and its answer: both from the RFC's example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The accepting side hashes this with the key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const EXTENSIONS: &str = "Sec-WebSocket-Extensions";
const DEFLATE: &str = "permessage-deflate";
const NO_CONTEXT: &str = "server_no_context_takeover";
const END: &[u8] = b"\r\n\r\n";
/// The longest head that is accepted, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

pub fn request(host: SocketAddr, path: &str) -> String {
    request_with(host, path, "")
}

/// Offers to accept compressed messages, each compressed by itself (RFC 7692, section 7.1).
pub fn request_compressed(host: SocketAddr, path: &str) -> String {
    let offer = format!("{EXTENSIONS}: {DEFLATE}; {NO_CONTEXT}; client_no_context_takeover\r\n");
    request_with(host, path, &offer)
}

fn request_with(host: SocketAddr, path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

/// Whether a head agrees to messages that are each compressed by themselves.
pub fn agreed(head: &[u8]) -> Result<bool, Failure> {
    let head = String::from_utf8_lossy(head);
    let Some(extensions) = header(&head, EXTENSIONS) else { return Ok(false) };
    // Only this was offered, and the server must not leave it out (section 7.1.1.1).
    let taken = extensions.starts_with(DEFLATE) && extensions.contains(NO_CONTEXT);
    taken.then_some(true).context(format!("the server agreed to {extensions:?}"))
}

/// The value of a head's header.
fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then_some(value.trim())
    })
}

/// The answer to a client of this program.
pub fn known_answer() -> String {
    answer(ACCEPT)
}

/// Where the head at the start of `bytes` ends. `None`: it has not ended yet.
pub fn behind_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}

/// Checks that a head switches the connection to a WebSocket.
pub fn check_answer(head: &[u8]) -> Result<(), Failure> {
    let head = String::from_utf8_lossy(head);
    if head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT) {
        return Ok(());
    }
    Err(no_handshake(&head))
}

/// Checks that a head begins a stream of events.
pub fn check_events(head: &[u8]) -> Result<(), Failure> {
    let head = String::from_utf8_lossy(head);
    if head.starts_with("HTTP/1.1 200 ") && header(&head, "content-type") == Some(CONTENT_TYPE) {
        return Ok(());
    }
    Err(no_handshake(&head))
}

fn no_handshake(head: &str) -> Failure {
    Failure::new(format!("no handshake, but {:?}", head.lines().next().unwrap_or_default()))
}

/// The length of the body after a head that tells it.
pub fn content_length(head: &[u8]) -> Result<usize, Failure> {
    let head = String::from_utf8_lossy(head);
    let length = header(&head, "content-length").and_then(|length| length.parse().ok());
    length.with_context(|| format!("an answer without a length: {head}"))
}

/// When to try again, if a head says that there is no room now (RFC 9110, section 15.6.4).
pub fn busy(head: &[u8]) -> Option<Duration> {
    let head = String::from_utf8_lossy(head);
    let seconds = header(&head, "retry-after").and_then(|value| value.parse().ok());
    head.starts_with("HTTP/1.1 503 ").then(|| Duration::from_secs(seconds.unwrap_or(1)))
}

/// Asks for a WebSocket over a blocking socket.
pub fn ask(socket: &mut TcpStream, path: &str) -> Result<(), Failure> {
    let host = socket.peer_addr().context("a server's address")?;
    socket.write_all(request(host, path).as_bytes()).context("a handshake")?;
    check_answer(&read_head(socket)?)
}

/// Accepts a WebSocket over a blocking socket.
pub fn give(socket: &mut TcpStream) -> Result<(), Failure> {
    let head = read_head(socket)?;
    let head = String::from_utf8_lossy(&head);
    let key = header(&head, "sec-websocket-key");
    let hash = Sha1::new().chain_update(key.context("a handshake without a key")?).chain_update(GUID).finalize();
    socket.write_all(answer(&BASE64_STANDARD.encode(hash)).as_bytes()).context("a handshake")
}

fn answer(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Reads byte by byte, so that no byte of a frame is read too.
fn read_head(socket: &mut TcpStream) -> Result<Vec<u8>, Failure> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(END) {
        socket.read_exact(&mut byte).context("a handshake")?;
        head.extend_from_slice(&byte);
        if head.len() > HEAD_BYTES {
            return Err(Failure::new("a handshake without an end"));
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_says_for_how_long() {
        let seconds = |head: &str| busy(head.as_bytes()).map(|pause| pause.as_secs());
        assert_eq!(seconds("HTTP/1.1 503 Service Unavailable\r\nretry-after: 3\r\n\r\n"), Some(3));
        assert_eq!(seconds("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some(1));
        assert_eq!(seconds("HTTP/1.1 410 Gone\r\nRetry-After: 3\r\n\r\n"), None);
    }

    #[test]
    fn only_a_stream_of_events_begins_one() {
        let is_one = |head: &str| check_events(head.as_bytes()).is_ok();
        assert!(is_one("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"));
        assert!(!is_one("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"));
        assert!(!is_one("HTTP/1.1 404 Not Found\r\nContent-Type: text/event-stream\r\n\r\n"));
    }

    #[test]
    fn compression_is_agreed_without_context_or_not_at_all() {
        let agreed = |header: &str| agreed(format!("HTTP/1.1 101 Switching Protocols\r\n{header}\r\n").as_bytes()).ok();
        assert_eq!(agreed(""), Some(false));
        let answer = "sec-websocket-extensions: permessage-deflate; server_no_context_takeover\r\n";
        assert_eq!(agreed(answer), Some(true));
        assert_eq!(agreed("Sec-WebSocket-Extensions: permessage-deflate\r\n"), None);
    }
}
