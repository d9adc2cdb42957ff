//! permessage-deflate, RFC 7692, which compresses each message by itself.
//!
//! With clients no context is kept from one message to the next, in either direction. So a message that is compressed
//! once fits every client, and a client costs no memory for it: one compressor per thread and one [`Inflater`] per shard
//! are enough. A server that this side is the client of may keep its context, which takes an inflater of its own.

use std::cell::RefCell;

use zlib_rs::{Deflate, DeflateFlush};

mod inflater;
mod negotiation;

pub use crate::deflate::{
    inflater::Inflater,
    negotiation::{Agreed, OFFER, ServerAgreed, agreed_by_server, negotiate},
};

/// The largest window, in bits: 32 KiB.
const MAX_WINDOW_BITS: u8 = 15;
/// zlib's smallest raw window, in bits. The RFC allows 8 too.
const MIN_WINDOW_BITS: u8 = 9;

/// The last bytes of a flush. A compressed message is sent without them, section 7.2.1.
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// zlib's compression level. In a recorded session of an exchange (9,946 messages, most of 120 B, the largest 41 kB),
/// level 1 leaves 90% in 2.4 µs a message; levels 3, 6 and 9 leave 85% in 7.5 to 7.8 µs. At levels 1, 3, 6 and 9 the
/// largest message becomes 17, 11, 11 and 11 kB in 85, 200, 400 and 980 µs. In another exchange's session (449 messages
/// of 520 B on average), level 1 leaves 69%, levels from 3 on leave 50%. Windows of 15, 12 and 9 bits hardly differ:
/// 84.7, 84.6, 84.4% in the first session and 50.4, 50.4, 49.6% in the second.
const LEVEL: i32 = 3;

/// Longest payload of a stored block, RFC 1951 section 3.2.4.
const MAX_STORED: usize = 0xFFFF;

thread_local! {
    /// One compressor for each window size, made when first needed. Each takes some 250 KiB.
    static COMPRESSORS: RefCell<[Option<Deflate>; (MAX_WINDOW_BITS - MIN_WINDOW_BITS + 1) as usize]> =
        const { RefCell::new([const { None }; _]) };
}

/// The most bytes that any compressor makes of a message of at most `length` bytes. Huffman's fixed codes take 9 bits
/// for some bytes, and flushes add a few bytes.
pub fn bound(length: usize) -> usize {
    length.saturating_add(length / 8).saturating_add(64)
}

/// Appends the payload of a compressed message, section 7.2.1, for clients that have agreed to a window of
/// `window_bits` (9 to 15) or more. It may be longer than `payload`.
pub fn deflate(payload: &[u8], window_bits: u8, out: &mut Vec<u8>) {
    let start = out.len();
    let bits = window_bits.clamp(MIN_WINDOW_BITS, MAX_WINDOW_BITS);
    let compressed = COMPRESSORS.with_borrow_mut(|compressors| {
        let compressor = compressors.get_mut(usize::from(bits - MIN_WINDOW_BITS))?;
        let compressor = compressor.get_or_insert_with(|| Deflate::new(LEVEL, false, bits));
        compress(compressor, payload, out)
    });
    if compressed.is_none() {
        out.truncate(start);
        store(payload, out);
    }
}

/// Appends a compressed message. `None`: it failed, and what it has appended is no message.
fn compress(compressor: &mut Deflate, payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
    compressor.reset();
    let start = out.len();
    let (mut taken, mut end) = (0, start);
    // zlib is done when it leaves room in the output.
    while end == out.len() {
        // Room enough for one call: a second one would flush again.
        out.resize(end + bound(payload.len()), 0);
        compressor.compress(payload.get(taken..)?, out.get_mut(end..)?, DeflateFlush::SyncFlush).ok()?;
        taken = usize::try_from(compressor.total_in()).ok()?;
        end = start + usize::try_from(compressor.total_out()).ok()?;
    }
    out.truncate(end);
    if taken != payload.len() || !out.ends_with(&TAIL) {
        return None;
    }
    out.truncate(end - TAIL.len());
    Some(())
}

/// Appends a message as stored blocks, in case the compressor fails.
fn store(payload: &[u8], out: &mut Vec<u8>) {
    for block in payload.chunks(MAX_STORED) {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(0x00);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    // The first byte of an empty block. The block's rest is the tail.
    out.push(0x00);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zlib_rs::{Inflate, InflateFlush};

    use super::*;

    /// Inflates with another implementation, which needs a final block after the message.
    fn reference(compressed: &[u8]) -> Vec<u8> {
        let stream = [compressed, &TAIL, &[0x01, 0x00, 0x00, 0xFF, 0xFF]].concat();
        miniz_oxide::inflate::decompress_to_vec(&stream).unwrap()
    }

    fn deflated(payload: &[u8], window_bits: u8) -> Vec<u8> {
        let mut out = b"before".to_vec();
        deflate(payload, window_bits, &mut out);
        assert_eq!(&out[..6], b"before");
        out.split_off(6)
    }

    #[test]
    fn examples_of_the_rfc() {
        // Sections 7.2.3.1 and 7.2.3.6.
        assert_eq!(deflated(b"Hello", 15), [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
        assert_eq!(deflated(b"", 15), [0x00]);
    }

    #[test]
    fn nothing_is_left_of_the_last_message() {
        let once = deflated(b"the same words, the same words", 15);
        assert_eq!(deflated(b"the same words, the same words", 15), once);
        assert_eq!(reference(&once), b"the same words, the same words");
    }

    /// Inflates with a window of this size. The output is taken byte by byte, so that only the window has the earlier
    /// bytes.
    fn with_window(compressed: &[u8], window_bits: u8) -> Vec<u8> {
        let stream = [compressed, &TAIL].concat();
        let mut state = Inflate::new(false, window_bits);
        let mut out = Vec::new();
        loop {
            let mut byte = [0];
            let at = usize::try_from(state.total_in()).unwrap();
            let made = state.total_out();
            state.decompress(&stream[at..], &mut byte, InflateFlush::NoFlush).unwrap();
            if state.total_out() == made {
                return out;
            }
            out.push(byte[0]);
        }
    }

    /// Bytes that repeat after `period`, not before.
    fn periodic(period: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(&mut next).take(period).collect::<Vec<u8>>().repeat(2)
    }

    #[test]
    fn windows_have_the_size_agreed() {
        let payload = periodic(1000);
        assert!(deflated(&payload, 15).len() < 1100);
        assert!(deflated(&payload, 9).len() > 2000);
        for (window_bits, taken) in [(0, 9), (8, 9), (9, 9), (10, 10), (14, 14), (15, 15), (255, 15)] {
            for period in [200, 300, 500, 600, 1000, 2000, 20_000, 32_500] {
                let payload = periodic(period);
                assert_eq!(with_window(&deflated(&payload, window_bits), taken), payload);
            }
        }
    }

    proptest! {
        #[test]
        fn another_implementation_reads_what_is_deflated(payload: Vec<u8>, window_bits in 9u8..=15) {
            let compressed = deflated(&payload, window_bits);
            prop_assert_eq!(reference(&compressed), &payload[..]);
            prop_assert!(compressed.len() <= bound(payload.len()));
        }

        #[test]
        fn long_messages_too(seed: Vec<u8>, length in 0usize..300_000, window_bits in 9u8..=15) {
            let payload: Vec<u8> = seed.iter().cycle().take(length).copied().collect();
            prop_assert_eq!(reference(&deflated(&payload, window_bits)), payload);
        }

        #[test]
        fn stored_messages_are_messages(payload: Vec<u8>, copies in 0usize..2000) {
            let payload = payload.repeat(copies);
            let mut out = Vec::new();
            store(&payload, &mut out);
            prop_assert_eq!(reference(&out), payload);
        }
    }
}
