//! What lies in a partner's socket, taken at once so that nobody is woken for each message.

use bytes::Bytes;
use wire::{Frame, message::Received};

use crate::{
    upstream::{
        session::Lost,
        socket::{PartnerSocket, SocketError},
    },
    usage,
};

/// Messages in a burst, at most.
const MESSAGES: usize = 256;
/// Frames of all kinds that it is made of.
const FRAMES: usize = 1024;
/// Payload bytes after which it is passed on.
const BYTES: usize = 256 << 10;
/// Pings of one burst that are answered: the last ones. RFC 6455 section 5.5.3 asks for one.
const PINGS: usize = 16;

/// A part of what has arrived, in order.
#[derive(Default)]
pub struct Burst {
    pub messages: Vec<Frame>,
    /// What the pings that are to be answered bring.
    pub pings: Vec<Bytes>,
    /// How much it is, without its bytes.
    pub received: usage::Received,
    pub end: Option<Lost>,
}

impl Burst {
    /// Takes `first`, and what has come behind it.
    pub fn take(socket: &mut PartnerSocket, first: Result<Received, SocketError>) -> Self {
        let mut burst = Self::default();
        let (mut frames, mut bytes) = (0, 0);
        let before = socket.bytes_read();
        let mut next = Some(first);
        while let Some(received) = next {
            frames += 1;
            match received {
                Ok(Received::Message(frame)) => {
                    bytes += frame.bytes.len();
                    burst.messages.push(frame);
                }
                Ok(Received::Ping(payload)) => {
                    if burst.pings.len() == PINGS {
                        burst.pings.remove(0);
                    }
                    burst.pings.push(payload);
                }
                Ok(Received::Pong | Received::Fragment) => {}
                Ok(Received::Close(frame)) => burst.end = Some(Lost::Closed(frame)),
                Err(error) => burst.end = Some(error.into()),
            }
            let is_full = frames >= FRAMES
                || burst.messages.len() >= MESSAGES
                || bytes >= BYTES
                // A long message is not whole yet.
                || socket.bytes_read() - before >= BYTES as u64;
            if is_full || burst.end.is_some() {
                break;
            }
            next = socket.next_now();
        }
        burst.received =
            usage::Received { messages: burst.messages.len(), control_frames: frames - burst.messages.len(), bytes: 0 };
        burst
    }
}
