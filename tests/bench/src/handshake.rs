//! The opening handshake (RFC 6455, section 4), with no more of HTTP than it takes.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha1::{Digest, Sha1};

use crate::failure::{Context, Failure};

/// The key of every client here, and the answer to it: those of the RFC's example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// What the accepting side hashes with the key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const END: &[u8] = b"\r\n\r\n";
/// A head longer than this is none.
const HEAD_BYTES: usize = 16 * 1024;

pub fn request(host: impl std::fmt::Display, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// The answer to a client of this program.
pub fn known_answer() -> String {
    answer(ACCEPT)
}

/// What follows the head that `bytes` begin with; `None`: it has not ended yet.
pub fn behind_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}

/// Whether a head says that the connection is a WebSocket from here on.
pub fn check_answer(head: &[u8]) -> Result<(), Failure> {
    let head = String::from_utf8_lossy(head);
    if head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT) {
        return Ok(());
    }
    Err(Failure::new(format!("no handshake, but {:?}", head.lines().next().unwrap_or_default())))
}

/// When to come again, if a head says that there is no room now (RFC 9110, section 15.6.4).
pub fn busy(head: &[u8]) -> Option<Duration> {
    let head = String::from_utf8_lossy(head);
    let seconds = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("retry-after").then(|| value.trim().parse().ok())?
    });
    head.starts_with("HTTP/1.1 503 ").then(|| Duration::from_secs(seconds.unwrap_or(1)))
}

/// Asks for a WebSocket over a socket that blocks.
pub fn ask(socket: &mut TcpStream, path: &str) -> Result<(), Failure> {
    let host = socket.peer_addr().context("a server's address")?;
    socket.write_all(request(host, path).as_bytes()).context("a handshake")?;
    check_answer(&read_head(socket)?)
}

/// Gives a WebSocket to whoever asks for one over a socket that blocks.
pub fn give(socket: &mut TcpStream) -> Result<(), Failure> {
    let head = read_head(socket)?;
    let head = String::from_utf8_lossy(&head);
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then_some(value.trim())
    });
    let hash = Sha1::new().chain_update(key.context("a handshake without a key")?).chain_update(GUID).finalize();
    socket.write_all(answer(&BASE64_STANDARD.encode(hash)).as_bytes()).context("a handshake")
}

fn answer(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Byte by byte, so that no frame is read along.
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
}
