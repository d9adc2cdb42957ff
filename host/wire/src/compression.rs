//! Frames for clients that have agreed to permessage-deflate, RFC 7692.

use crate::{deflate, frame};

/// The window of messages that are compressed once for all clients. Python's `websockets` asks for 12 bits; browsers
/// take any. A larger window does not make the messages of feeds smaller (`LEVEL` in `deflate.rs` has the figures).
pub const SHARED_WINDOW_BITS: u8 = 12;

/// How a client's messages are compressed.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// Payloads of fewer bytes are sent as they are.
    pub above: usize,
    pub window_bits: u8,
}

impl Compression {
    /// Appends one whole frame, compressed if that makes it smaller.
    pub fn encode(&self, opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
        if payload.len() < self.above {
            return frame::encode(opcode, payload, out);
        }
        let mut compressed = Vec::with_capacity(payload.len() / 2);
        deflate::deflate(payload, self.window_bits, &mut compressed);
        if compressed.len() < payload.len() {
            frame::encode(opcode | frame::COMPRESSED, &compressed, out);
        } else {
            frame::encode(opcode, payload, out);
        }
    }
}

/// Appends one whole frame. `None`: the client has not agreed to compression.
pub fn encode(compression: Option<Compression>, opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    match compression {
        Some(compression) => compression.encode(opcode, payload, out),
        None => frame::encode(opcode, payload, out),
    }
}
