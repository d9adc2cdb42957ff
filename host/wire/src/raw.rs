//! Plain WebSockets: the replies and errors that a client gets besides publications.

use crate::{Compression, Frame, Kind, encode, frame};

/// The opcode of a message of this kind.
pub fn opcode(kind: Kind) -> u8 {
    match kind {
        Kind::Text => frame::TEXT,
        Kind::Binary => frame::BINARY,
    }
}

/// Appends a message as a frame.
pub fn write(frame: &Frame, out: &mut Vec<u8>) {
    frame::encode(opcode(frame.kind), &frame.bytes, out);
}

/// Appends a reply to a client that may have agreed to compression.
pub fn reply(frame: &Frame, compression: Option<Compression>, out: &mut Vec<u8>) {
    encode(compression, opcode(frame.kind), &frame.bytes, out);
}

/// Appends an error, which is a text message: `{"error":{"code":100,"message":"…"}}`. The relay's own codes are the
/// Centrifuge protocol's for the same errors ([`crate::centrifuge::Error`]), a tenant has its own.
pub fn error(code: u32, message: &str, out: &mut Vec<u8>) {
    let envelope = serde_json::json!({ "error": { "code": code, "message": message } });
    frame::encode(frame::TEXT, envelope.to_string().as_bytes(), out);
}

/// Appends the error for messages that were dropped, with their number:
/// `{"error":{"code":111,"dropped":3,"message":"…"}}`.
pub fn dropped(code: u32, message: &str, count: u64, out: &mut Vec<u8>) {
    let envelope = serde_json::json!({ "error": { "code": code, "dropped": count, "message": message } });
    frame::encode(frame::TEXT, envelope.to_string().as_bytes(), out);
}
