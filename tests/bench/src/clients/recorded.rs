//! The messages of a recording, compressed or not.
//!
//! A server that compresses without context sends the same bytes to every client. So the first client that gets a
//! message inflates it and compares it with the recording, and all others compare the bytes of their frames with the
//! first one's. Each message to each client is checked, and the clients spend next to nothing on inflating. Unexpected
//! bytes are inflated too, to find out which message they are.

use zlib_rs::{Inflate, InflateFlush};

use crate::{
    frame::{self, Frame},
    message,
    recording::Recording,
};

/// The bytes that a compressed message is sent without (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
const WINDOW_BITS: u8 = 15;
/// Most bytes of a message: a feed's frames have no more.
const MAX_BYTES: usize = u16::MAX as usize;

pub struct Recorded {
    recording: Recording,
    messages: u32,
    /// By number. Empty: no client has got it yet.
    known: Vec<Known>,
    inflater: Inflater,
    /// Inflated bytes of all deliveries.
    pub payload_bytes: u64,
    /// Deliveries that came compressed.
    pub compressed: u64,
    /// Frames that differed from the known frame of the expected message.
    pub compared: u64,
}

/// The first frame of a message that came.
#[derive(Clone, Default)]
struct Known {
    compressed: bool,
    payload: Vec<u8>,
    /// Length in bytes, inflated.
    length: usize,
}

impl Recorded {
    pub fn new(messages: u32, recording: Recording) -> Self {
        Self {
            recording,
            messages,
            known: vec![Known::default(); messages as usize],
            inflater: Inflater::new(),
            payload_bytes: 0,
            compressed: 0,
            compared: 0,
        }
    }

    /// The number of the message in a frame: `expected` or another. `None`: the recording has no such message. The
    /// first client that gets a message records when it was sent.
    pub fn take(&mut self, frame: &Frame<'_>, expected: u32, sent: &mut [u64]) -> Option<u32> {
        let compressed = is_compressed(frame);
        let is_known = |known: &Known| known.compressed == compressed && known.payload == frame.payload;
        if self.known.get(expected as usize).is_some_and(is_known) {
            return Some(expected);
        }
        self.compared += 1;
        let payload = if compressed { self.inflater.inflate(frame.payload)? } else { frame.payload };
        let stamp = self.recording.check(payload, self.messages)?;
        let number = message::number(stamp)?;
        let known = self.known.get_mut(number as usize)?;
        if known.payload.is_empty() {
            *known = Known { compressed, payload: frame.payload.to_vec(), length: payload.len() };
            *sent.get_mut(number as usize)? = message::sent(stamp)?;
        }
        Some(number)
    }

    /// Counts a message that came for the first time.
    pub fn delivered(&mut self, frame: &Frame<'_>, number: u32) {
        self.compressed += u64::from(is_compressed(frame));
        self.payload_bytes += self.known.get(number as usize).map_or(0, |known| known.length as u64);
    }
}

fn is_compressed(frame: &Frame<'_>) -> bool {
    frame.first & frame::COMPRESSED != 0
}

struct Inflater {
    state: Inflate,
    buffer: Vec<u8>,
}

impl Inflater {
    fn new() -> Self {
        // There is room for one byte more: a message that fills all of it was too long.
        Self { state: Inflate::new(false, WINDOW_BITS), buffer: vec![0; MAX_BYTES + 1] }
    }

    /// `None`: it cannot be inflated by itself.
    fn inflate(&mut self, compressed: &[u8]) -> Option<&[u8]> {
        self.state.reset(false);
        let input = [compressed, &TAIL].concat();
        self.state.decompress(&input, &mut self.buffer, InflateFlush::SyncFlush).ok()?;
        let length = usize::try_from(self.state.total_out()).ok()?;
        let whole = self.state.total_in() == input.len() as u64 && length <= MAX_BYTES;
        self.buffer.get(..length).filter(|_| whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process};
    use zlib_rs::{Deflate, DeflateFlush};

    fn deflated(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; payload.len() + 64];
        let mut state = Deflate::new(3, false, 12);
        state.compress(payload, &mut out, DeflateFlush::SyncFlush).unwrap();
        out.truncate(state.total_out() as usize - TAIL.len());
        out
    }

    fn recorded(messages: u32) -> Recorded {
        let file = std::env::temp_dir().join(format!("bench-recorded-{}-{messages}", process::id()));
        fs::write(&file, r#"{"from":"upstream","text":"{\"type\":\"ticker\",\"prices\":[1,1,1,1,1,1,1]}"}"#).unwrap();
        let recording = Recording::read(&file).unwrap();
        fs::remove_file(file).unwrap();
        Recorded::new(messages, recording)
    }

    #[test]
    fn only_what_nobody_has_seen_is_inflated() {
        let mut recorded = recorded(3);
        let mut sent = [0; 3];
        let mut plain = Vec::new();
        recorded.recording.write(1, 3, 77, &mut plain);
        let compressed = deflated(&plain);
        let frame = Frame { first: frame::COMPRESSED_TEXT, mask: None, payload: &compressed };
        // The message comes to the first client, then to one that expects it, then to one that has missed a message.
        for (expected, compared) in [(1, 1), (1, 1), (0, 2)] {
            assert_eq!(recorded.take(&frame, expected, &mut sent), Some(1));
            recorded.delivered(&frame, 1);
            assert_eq!(recorded.compared, compared);
        }
        let frame = Frame { first: frame::TEXT, mask: None, payload: &plain };
        assert_eq!(recorded.take(&frame, 1, &mut sent), Some(1));
        recorded.delivered(&frame, 1);
        assert_eq!((recorded.compressed, recorded.payload_bytes, sent), (3, 4 * plain.len() as u64, [0, 77, 0]));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut recorded = recorded(2);
        let mut plain = Vec::new();
        recorded.recording.write(0, 2, 77, &mut plain);
        let compressed = deflated(&plain);
        let mut take = |first, payload: &[u8]| recorded.take(&Frame { first, mask: None, payload }, 0, &mut [0; 2]);
        assert_eq!(take(frame::TEXT, &compressed), None);
        assert_eq!(take(frame::COMPRESSED_TEXT, &plain), None);
        assert_eq!(take(frame::COMPRESSED_TEXT, &compressed[..compressed.len() - 2]), None);
        assert_eq!(take(frame::TEXT, &plain[..plain.len() - 1]), None);
        assert_eq!(take(frame::COMPRESSED_TEXT, &deflated(&vec![b' '; MAX_BYTES + 1])), None);
        assert_eq!(take(frame::COMPRESSED_TEXT, &compressed), Some(0));
    }
}
