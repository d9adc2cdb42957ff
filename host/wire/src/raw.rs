//! The door for plain WebSockets: what is said to a client besides publications.

use crate::{Compression, Frame, Kind, encode, frame};

/// An error's code: the numbers of the Centrifuge protocol, which has the same need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The tenant's handler broke.
    Internal = 100,
    /// More messages wait, or are sent, than may.
    TooManyRequests = 111,
}

/// The opcode of a message of this kind.
pub fn opcode(kind: Kind) -> u8 {
    match kind {
        Kind::Text => frame::TEXT,
        Kind::Binary => frame::BINARY,
    }
}

/// A message as it goes on the wire.
pub fn write(frame: &Frame, out: &mut Vec<u8>) {
    frame::encode(opcode(frame.kind), &frame.bytes, out);
}

/// A reply, for a client that may have agreed to compression.
pub fn reply(frame: &Frame, compression: Option<Compression>, out: &mut Vec<u8>) {
    encode(compression, opcode(frame.kind), &frame.bytes, out);
}

/// An error as it goes on the wire: a text message, `{"error":{"code":111,"message":"…"}}`.
pub fn error(code: u32, message: &str, out: &mut Vec<u8>) {
    let envelope = serde_json::json!({ "error": { "code": code, "message": message } });
    frame::encode(frame::TEXT, envelope.to_string().as_bytes(), out);
}
