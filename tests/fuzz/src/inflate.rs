//! Compressed messages, from clients and to clients.

use wire::{
    deflate::{Inflater, bound, deflate},
    frame::Violation,
};

/// The end of a flushed message with nothing after it: RFC 7692 section 7.2.2, then an empty final block.
const END: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// Takes two bytes of settings, then bytes that are first read as a compressed message and then compressed as a
/// message.
pub fn inflate(input: &[u8]) {
    let [max, window_bits, bytes @ ..] = input else { return };
    let mut inflater = Inflater::default();
    compressed(bytes, usize::from(*max) << 8, &mut inflater);
    uncompressed(bytes, 9 + window_bits % 7, &mut inflater);
}

/// At most `max` bytes may come out, and they must be the ones that another implementation finds.
fn compressed(bytes: &[u8], max: usize, inflater: &mut Inflater) {
    let Ok(message) = inflater.inflate(bytes, max) else { return };
    assert!(message.len() <= max);
    if bytes.is_empty() {
        return assert!(message.is_empty());
    }
    // The other implementation stops at a block with its final bit set, which need not be the end of the message.
    let first = miniz_oxide::inflate::decompress_to_vec_with_limit(&[bytes, &END].concat(), max);
    assert!(first.is_ok_and(|first| message.starts_with(&first)));
}

/// What is compressed must be read back, with its exact size as the bound.
fn uncompressed(payload: &[u8], window_bits: u8, inflater: &mut Inflater) {
    let mut compressed = Vec::new();
    deflate(payload, window_bits, &mut compressed);
    assert!(compressed.len() <= bound(payload.len()));
    assert_eq!(inflater.inflate(&compressed, payload.len()), Ok(payload));
    if let Some(less) = payload.len().checked_sub(1) {
        assert_eq!(inflater.inflate(&compressed, less), Err(Violation::TooLarge));
    }
}
