//! Messages as they go to a client that has agreed to permessage-deflate, RFC 7692.

use crate::{deflate, frame};

/// The window of what is compressed once for all: what Python's `websockets` asks for; browsers take any. A larger one
/// makes nothing smaller of what feeds send (`LEVEL` in `deflate.rs` has the figures).
pub const SHARED_WINDOW_BITS: u8 = 12;

/// What a client's messages are compressed with.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// Smaller payloads go as they are.
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

/// One whole frame of a client that may have agreed.
pub fn encode(compression: Option<Compression>, opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    match compression {
        Some(compression) => compression.encode(opcode, payload, out),
        None => frame::encode(opcode, payload, out),
    }
}
