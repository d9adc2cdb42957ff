//! A partner's frames, joined into messages.

use bytes::BytesMut;
use wire::{
    Kind,
    deflate::Inflater,
    frame::{MAX_CONTROL, Violation},
    message::{Assembly, Received, Taken},
};

/// Takes two bytes of settings, then a connection's bytes. However the bytes are split, and whether a frame has a buffer
/// of its own or not, the same must be received.
pub fn server_frame(input: &[u8]) {
    let [settings, split, bytes @ ..] = input else { return };
    let max_message = usize::from(*settings) << 2;
    let inflater = || match settings % 3 {
        0 => None,
        1 => Some(Inflater::default()),
        _ => Some(Inflater::with_context()),
    };
    let whole = read(bytes, bytes.len(), false, max_message, inflater());
    let split = usize::from(*split) % 16 + 1;
    assert_eq!(read(bytes, split, false, max_message, inflater()), whole, "in pieces of {split}");
    assert_eq!(read(bytes, split, true, max_message, inflater()), whole, "each frame in its own buffer");
}

/// Reads bytes as an upstream does, `step` at a time. `own`: no piece goes beyond the end of a frame. Returns what is
/// received, and how the connection ended.
fn read(
    mut bytes: &[u8],
    step: usize,
    own: bool,
    max_message: usize,
    mut inflater: Option<Inflater>,
) -> (Vec<String>, Result<(), Violation>) {
    let mut assembly = Assembly::default();
    let mut buffer = BytesMut::new();
    let mut all = Vec::new();
    let mut room = step;
    loop {
        let is_frame = own && room == 0;
        match assembly.take(&mut buffer, is_frame, max_message, inflater.as_mut()) {
            Ok(Taken::Received(received)) => {
                check(&received, max_message);
                all.push(format!("{received:?}"));
                room = 1;
                continue;
            }
            Ok(Taken::Unfinished(needed)) if own => {
                // A header comes byte by byte.
                room = needed.checked_sub(buffer.len()).unwrap_or(1).max(1);
            }
            Ok(Taken::Unfinished(_)) => room = step,
            Err(violation) => return (all, Err(violation)),
        }
        if bytes.is_empty() {
            return (all, Ok(()));
        }
        let take = room.min(step).min(bytes.len());
        let (piece, rest) = bytes.split_at(take);
        buffer.extend_from_slice(piece);
        bytes = rest;
        room -= take.min(room);
    }
}

fn check(received: &Received, max_message: usize) {
    match received {
        Received::Message(frame) => {
            assert!(frame.bytes.len() <= max_message);
            assert!(frame.kind == Kind::Binary || std::str::from_utf8(&frame.bytes).is_ok());
        }
        Received::Ping(payload) => assert!(payload.len() <= MAX_CONTROL),
        Received::Close(Some((_, reason))) => assert!(reason.len() <= MAX_CONTROL - 2),
        Received::Pong | Received::Close(None) | Received::Fragment => {}
    }
}
