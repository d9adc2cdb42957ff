//! The door for plain WebSockets: what is said to a client besides publications.

use crate::{
    channel::{Frame, Kind},
    client::frame,
};

/// An error's code: the numbers of the Centrifuge protocol, which has the same need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The tenant's handler broke.
    Internal = 100,
    /// More messages wait than may.
    TooManyRequests = 111,
}

/// A reply as it goes on the wire.
pub fn reply(frame: &Frame, out: &mut Vec<u8>) {
    let opcode = match frame.kind {
        Kind::Text => frame::TEXT,
        Kind::Binary => frame::BINARY,
    };
    frame::encode(opcode, &frame.bytes, out);
}

/// An error as it goes on the wire: a text message, `{"error":{"code":111,"message":"…"}}`.
pub fn error(code: u32, message: &str, out: &mut Vec<u8>) {
    let envelope = serde_json::json!({ "error": { "code": code, "message": message } });
    frame::encode(frame::TEXT, envelope.to_string().as_bytes(), out);
}
