//! Clients' frames, joined into messages.

use wire::{
    Kind,
    deflate::Inflater,
    frame::{self, MAX_CONTROL, Violation},
    message::{Assembly, Incoming},
};

/// Takes two bytes of settings, then a connection's bytes. However the bytes are split, the events must be the same.
pub fn frame(input: &[u8]) {
    let [agreed, split, bytes @ ..] = input else { return };
    let max_message = usize::from(*agreed) << 2;
    let agreed = agreed % 2 == 1;
    let whole = read(std::iter::once(bytes), max_message, agreed);
    let split = usize::from(*split) % 16 + 1;
    assert_eq!(read(bytes.chunks(split), max_message, agreed), whole, "in pieces of {split}");
}

/// Reads bytes as a shard does. Returns the events, and how the connection ended.
fn read<'a>(
    arriving: impl Iterator<Item = &'a [u8]>,
    max_message: usize,
    agreed: bool,
) -> (Vec<String>, Result<(), Violation>) {
    let mut inflater = agreed.then(Inflater::default);
    let mut assembly = Assembly::default();
    let mut waiting = Vec::new();
    let mut events = Vec::new();
    for bytes in arriving {
        waiting.extend_from_slice(bytes);
        let mut rest = waiting.as_mut_slice();
        loop {
            match assembly.next(rest, max_message, inflater.as_mut()) {
                Ok(Some((event, taken))) => {
                    check(&event, max_message);
                    events.push(format!("{event:?}"));
                    assert!(taken >= 6, "a header with a mask");
                    rest = rest.get_mut(taken..).unwrap_or_default();
                }
                Ok(None) => break,
                Err(violation) => return (events, Err(violation)),
            }
        }
        let left = rest.len();
        waiting.drain(..waiting.len() - left);
    }
    (events, Ok(()))
}

fn check(event: &Incoming<'_>, max_message: usize) {
    match event {
        Incoming::Message(kind, payload) => {
            assert!(payload.len() <= max_message);
            assert!(*kind == Kind::Binary || std::str::from_utf8(payload).is_ok());
            let mut encoded = Vec::new();
            let opcode = if *kind == Kind::Text { frame::TEXT } else { frame::BINARY };
            frame::encode(opcode, payload, &mut encoded);
            assert_eq!(frame::decode(&encoded), Some((*kind, *payload)));
        }
        Incoming::Ping(payload) => assert!(payload.len() <= MAX_CONTROL),
        Incoming::Pong | Incoming::Close(_) | Incoming::Fragment => {}
    }
}
