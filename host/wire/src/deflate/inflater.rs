//! Reads compressed messages, RFC 7692 section 7.2.2.

use zlib_rs::{Inflate, InflateFlush, Status};

use crate::{
    deflate::{MAX_WINDOW_BITS, TAIL},
    frame::Violation,
};

/// The bytes that a message is sent without (`TAIL`), then an empty final block (RFC 1951 section 3.2.4). The stream
/// ends there if the message was whole.
const END: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// An empty block that is not the last one, from a byte's beginning.
const EMPTY_BLOCK: [u8; 5] = [0x00, 0x00, 0x00, 0xFF, 0xFF];

/// Most streams in one message that bring nothing.
const MAX_EMPTY_STREAMS: usize = 64;

/// Bytes of memory that zlib takes to inflate with the largest window.
const STATE: usize = 50 << 10;

/// The buffer's size in bytes, at first and again after a larger message.
const KEPT: usize = 64 << 10;

/// Reads compressed messages. One inflater serves any number of connections, unless it keeps their context.
#[derive(Default)]
pub struct Inflater {
    /// Each message may refer to those before it (section 7.1.1, "context takeover").
    keeps_context: bool,
    /// Made when first needed.
    state: Option<Inflate>,
    buffer: Vec<u8>,
    /// How many bytes of the buffer are the message.
    length: usize,
}

impl Inflater {
    /// Makes an inflater for one connection, whose other side goes on compressing where the message before has ended.
    pub fn with_context() -> Self {
        Self { keeps_context: true, ..Self::default() }
    }

    /// Bytes of memory that it has taken.
    pub fn memory(&self) -> usize {
        self.state.as_ref().map_or(0, |_| STATE) + self.buffer.capacity()
    }

    /// The message that was inflated last, with its buffer.
    pub fn hand_out(&mut self) -> Vec<u8> {
        let mut message = std::mem::take(&mut self.buffer);
        message.truncate(self.length);
        self.length = 0;
        message.shrink_to_fit();
        message
    }

    /// Returns the message that a compressed payload holds. A message of more than `max` bytes is
    /// [`Violation::TooLarge`]; it takes no more memory than one of `max` bytes.
    pub fn inflate(&mut self, compressed: &[u8], max: usize) -> Result<&[u8], Violation> {
        self.buffer.truncate(KEPT);
        self.buffer.shrink_to_fit();
        self.length = 0;
        let state = self.state.get_or_insert_with(|| Inflate::new(false, MAX_WINDOW_BITS));
        if self.keeps_context {
            // After a final block there is no window to refer to: zlib, which most senders use, begins anew as well.
            if !self.read(compressed, max)? {
                self.read(&TAIL, max)?;
                let length = self.length;
                // Another empty block changes nothing, unless the message was cut within one. A cut within a block's
                // header may be found with the next message only.
                self.read(&EMPTY_BLOCK, max)?;
                if self.length != length {
                    return Err(Violation::Deflate);
                }
            }
            return Ok(self.buffer.get(..self.length).unwrap_or_default());
        }
        state.reset(false);
        // A block with its final bit set ends a stream (section 7.2.3.4). A payload that ends with one does not need
        // `END`.
        if self.read(compressed, max)? || self.read(&END, max)? {
            return Ok(self.buffer.get(..self.length).unwrap_or_default());
        }
        Err(Violation::Deflate)
    }

    /// Inflates all of `input`. Returns whether a stream ends with it. If a stream ends earlier, another one follows
    /// it.
    fn read(&mut self, mut input: &[u8], max: usize) -> Result<bool, Violation> {
        let state = self.state.as_mut().ok_or(Violation::Deflate)?;
        let mut ended = true;
        let mut empty_streams = 0;
        // While the buffer is full, there may be more output to come.
        while !input.is_empty() || (!ended && self.length == self.buffer.len()) {
            if self.length == self.buffer.len() {
                let room = max.saturating_add(1).saturating_sub(self.length);
                let more = self.length.max(KEPT).min(room);
                self.buffer.reserve_exact(more);
                self.buffer.resize(self.length + more, 0);
            }
            let (before_in, before_out) = (state.total_in(), state.total_out());
            let output = self.buffer.get_mut(self.length..).unwrap_or_default();
            let status = state.decompress(input, output, InflateFlush::NoFlush).map_err(|_| Violation::Deflate)?;
            let taken = usize::try_from(state.total_in() - before_in).unwrap_or(usize::MAX);
            let made = usize::try_from(state.total_out() - before_out).unwrap_or(usize::MAX);
            self.length = self.length.saturating_add(made);
            if self.length > max {
                return Err(Violation::TooLarge);
            }
            if taken == 0 && made == 0 && !input.is_empty() {
                return Err(Violation::Deflate);
            }
            input = input.get(taken..).unwrap_or_default();
            ended = status == Status::StreamEnd;
            if ended {
                // Each costs some time, and takes two bytes.
                empty_streams += usize::from(state.total_out() == 0);
                if empty_streams > MAX_EMPTY_STREAMS {
                    return Err(Violation::Deflate);
                }
                state.reset(false);
            }
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zlib_rs::{Deflate, DeflateFlush};

    use super::*;
    use crate::deflate::deflate;

    fn inflated(compressed: &[u8], max: usize) -> Result<Vec<u8>, Violation> {
        Inflater::default().inflate(compressed, max).map(<[u8]>::to_vec)
    }

    fn deflated(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        deflate(payload, 15, &mut out);
        out
    }

    #[test]
    fn streams_that_bring_nothing_have_an_end() {
        // An empty block of the fixed code, with its final bit set.
        let empty = |count: usize| [0x03, 0x00].repeat(count);
        assert_eq!(inflated(&empty(MAX_EMPTY_STREAMS), 100), Ok(Vec::new()));
        assert_eq!(inflated(&empty(MAX_EMPTY_STREAMS + 1), 100), Err(Violation::Deflate));
    }

    #[test]
    fn examples_of_the_rfc() {
        let examples: [&[u8]; 5] = [
            // Section 7.2.3.1, and its two fragments joined.
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // 7.2.3.3, without compression.
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            // 7.2.3.4, a block with its final bit set; then the same without the empty block that has to follow it.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // 7.2.3.5, two blocks.
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for example in examples {
            assert_eq!(inflated(example, 5).as_deref(), Ok(&b"Hello"[..]), "{example:02x?}");
            assert_eq!(inflated(example, 4), Err(Violation::TooLarge));
        }
        // 7.2.3.6, and no byte at all.
        assert_eq!(inflated(&[0x00], 0), Ok(Vec::new()));
        assert_eq!(inflated(&[], 0), Ok(Vec::new()));
        // 7.2.3.2, the second message of a compressor that keeps its window.
        assert_eq!(inflated(&[0xf2, 0x00, 0x11, 0x00, 0x00], 100), Err(Violation::Deflate));
    }

    #[test]
    fn what_follows_a_final_block_counts() {
        let mut twice = vec![0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        twice.extend_from_slice(&deflated(b", world"));
        assert_eq!(inflated(&twice, 100).as_deref(), Ok(&b"Hello, world"[..]));
    }

    #[test]
    fn a_message_that_is_cut_is_broken() {
        let whole = deflated(&b"text that is long enough to be worth it ".repeat(20));
        for length in 1..whole.len() {
            assert_eq!(inflated(&whole[..length], 10_000), Err(Violation::Deflate), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn a_message_that_is_cut_is_broken_with_context_too() {
        let mut compressor = Deflate::new(6, false, 15);
        let text = b"text that is long enough to be worth it, and not the same again ".repeat(3);
        let mut out = vec![0; 1000];
        compressor.compress(&text, &mut out, DeflateFlush::SyncFlush).unwrap();
        let whole = &out[..usize::try_from(compressor.total_out()).unwrap() - 4];
        assert_eq!(Inflater::with_context().inflate(whole, 1000), Ok(&text[..]));
        let mut found_at_once = 0;
        for length in 1..whole.len() {
            let mut inflater = Inflater::with_context();
            if inflater.inflate(&whole[..length], 1000).is_err() {
                found_at_once += 1;
            } else {
                assert_eq!(inflater.inflate(whole, 1000), Err(Violation::Deflate), "{length} of {}", whole.len());
            }
        }
        assert!(found_at_once > whole.len() / 2, "{found_at_once} of {}", whole.len());
    }

    /// 64 MiB of zeros.
    fn bomb() -> Vec<u8> {
        let mut compressor = Deflate::new(9, false, 15);
        let mut out = vec![0; 1 << 20];
        compressor.compress(&vec![0; 64 << 20], &mut out, DeflateFlush::SyncFlush).unwrap();
        assert_eq!(compressor.total_in(), 64 << 20);
        out.truncate(usize::try_from(compressor.total_out()).unwrap());
        out.truncate(out.len() - 4);
        out
    }

    #[test]
    fn a_bomb_takes_what_a_message_may() {
        let bomb = bomb();
        assert!(bomb.len() < 70_000);
        let mut inflater = Inflater::default();
        for max in [0, 1, KEPT - 1, KEPT, KEPT + 1, 1 << 20] {
            assert_eq!(inflater.inflate(&bomb, max), Err(Violation::TooLarge));
            assert!(inflater.buffer.capacity() <= (max + 1).max(KEPT), "{} for {max}", inflater.buffer.capacity());
        }
        assert_eq!(inflater.inflate(&bomb, 64 << 20).map(<[u8]>::len), Ok(64 << 20));
        assert_eq!(inflater.inflate(&deflated(b"Hello"), 10).as_deref(), Ok(&b"Hello"[..]));
        assert!(inflater.buffer.capacity() <= KEPT);
    }

    proptest! {
        #[test]
        fn another_implementations_messages_are_read(payload: Vec<u8>, copies in 1usize..1000, level in 0u8..=9) {
            let payload = payload.repeat(copies);
            // The other implementation ends its payload with a final block.
            let compressed = miniz_oxide::deflate::compress_to_vec(&payload, level);
            let mut inflater = Inflater::default();
            prop_assert_eq!(inflater.inflate(&compressed, payload.len()), Ok(&payload[..]));
            prop_assert_eq!(inflater.inflate(&[&compressed[..], &[0]].concat(), payload.len()), Ok(&payload[..]));
        }

        #[test]
        fn messages_are_read_whatever_came_before(garbage: Vec<u8>, payload: Vec<u8>, window_bits in 9u8..=15) {
            let mut compressed = Vec::new();
            deflate(&payload, window_bits, &mut compressed);
            let mut inflater = Inflater::default();
            let _ = inflater.inflate(&garbage, 1000);
            prop_assert_eq!(inflater.inflate(&compressed, payload.len()), Ok(&payload[..]));
            if let Some(less) = payload.len().checked_sub(1) {
                prop_assert_eq!(inflater.inflate(&compressed, less), Err(Violation::TooLarge));
            }
        }

        #[test]
        fn garbage_never_makes_more_than_it_may(garbage: Vec<u8>, max in 0usize..5000) {
            if let Ok(message) = inflated(&garbage, max) {
                prop_assert!(message.len() <= max);
            }
        }
    }
}
