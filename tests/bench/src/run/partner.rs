//! A partner in this process, for tenants' upstreams, which may connect at any time.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{
    failure::{Context, Failure},
    frame, handshake,
};

/// Longest wait for an upstream that connects on demand.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Partner {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Partner {
    pub fn new() -> Result<Self, Failure> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("a partner's listener")?;
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).context("a partner's listener")?;
        let address = listener.local_addr().context("a partner's listener")?;
        Ok(Self { listener, address })
    }

    /// Accepts the next connection and does its handshake.
    pub fn accept(&self) -> Result<TcpStream, Failure> {
        let (mut socket, _) = self.listener.accept().context("no upstream connects to the partner")?;
        socket.set_nodelay(true).context("a partner's socket")?;
        handshake::give(&mut socket)?;
        Ok(socket)
    }
}

/// Sends a text message.
pub fn send(socket: &mut TcpStream, payload: &[u8]) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    wire::frame::encode(wire::frame::TEXT, payload, &mut bytes);
    socket.write_all(&bytes).context("a partner's message")
}

/// Answers pings until the other side closes, then closes too.
pub fn stay(mut socket: TcpStream) {
    thread::spawn(move || {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 512]);
        while let Ok(read @ 1..) = socket.read(&mut buffer) {
            bytes.extend(buffer.iter().take(read));
            let mut rest = bytes.as_slice();
            while let Some((frame, behind)) = frame::split(rest) {
                // A peer that is gone is noticed when it is read.
                let _ = match frame.first {
                    frame::CLOSE => socket.write_all(&[frame::CLOSE, 0]),
                    frame::PING => socket.write_all(&pong(&frame)),
                    _ => Ok(()),
                };
                rest = behind;
            }
            bytes = rest.to_vec();
        }
    });
}

/// The answer to a masked ping of at most 125 bytes (RFC 6455, section 5.5).
fn pong(ping: &frame::Frame<'_>) -> Vec<u8> {
    let mut pong = Vec::new();
    let mut payload = ping.payload.to_vec();
    wire::frame::unmask(&mut payload, ping.mask.unwrap_or_default());
    wire::frame::encode(wire::frame::PONG, &payload, &mut pong);
    pong
}
