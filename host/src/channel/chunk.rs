//! One burst of publications, encoded once for all who read it.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    channel::{Frame, Kind},
    client::frame,
};

/// What a chunk takes besides its frames and their index: itself, its allocations, its places in logs.
const OVERHEAD: usize = 128;

/// Publications as WebSocket frames, one after another: immutable, shared by reference.
#[derive(Debug)]
pub struct Chunk {
    /// Position in the channel's log, without gaps.
    pub seq: u64,
    /// Offset of the first publication; each further one has the next.
    pub first_offset: u64,
    bytes: Box<[u8]>,
    /// Where each publication's frame ends in `bytes`.
    ends: Box<[u32]>,
}

impl Chunk {
    /// Encodes publications until they are all in or `limit` bytes are passed; returns how many went in, at least one.
    pub fn encode(seq: u64, first_offset: u64, publications: &[Frame], limit: usize) -> (Self, usize) {
        let mut size = 0;
        let mut count = 0;
        for publication in publications {
            size += frame::header_len(publication.bytes.len()) + publication.bytes.len();
            count += 1;
            if size >= limit {
                break;
            }
        }
        // Allocated at its exact size: a chunk is kept as long as its channel's log reaches back.
        let mut bytes = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(count);
        for publication in publications.iter().take(count) {
            let opcode = match publication.kind {
                Kind::Text => frame::TEXT,
                Kind::Binary => frame::BINARY,
            };
            frame::encode(opcode, &publication.bytes, &mut bytes);
            // MAX_PAYLOAD and the limit keep a chunk far below 4 GiB.
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        (Self { seq, first_offset, bytes: bytes.into(), ends: ends.into() }, count)
    }

    /// The most bytes of memory that the chunks of a burst can take, cut at `limit`.
    pub fn most(burst: &[Frame], limit: usize) -> usize {
        let frame = |frame: &Frame| frame::header_len(frame.bytes.len()) + frame.bytes.len();
        let frames: usize = burst.iter().map(frame).sum();
        // Each chunk but the last has `limit` bytes at least.
        let chunks = burst.len().min(1 + frames / limit.max(1));
        frames + burst.len() * size_of::<u32>() + chunks * OVERHEAD
    }

    /// All frames.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The last publication's payload, copied.
    pub fn last(&self) -> Option<Frame> {
        let before = self.ends.len().checked_sub(2).and_then(|index| self.ends.get(index));
        let encoded = self.bytes.get(before.map_or(0, |end| *end as usize)..)?;
        let (kind, payload) = frame::decode(encoded)?;
        Some(Frame { kind, bytes: Bytes::copy_from_slice(payload) })
    }

    /// How many publications end in `from..=to`: those completed by sending the bytes between.
    pub fn completed(&self, from: usize, to: usize) -> usize {
        if from == 0 && to == self.bytes.len() {
            return self.ends.len();
        }
        self.ends_up_to(to) - self.ends_up_to(from)
    }

    /// What is left of the frame that `position` is inside of; `None` at a frame's start.
    pub fn rest_of_frame(&self, position: usize) -> Option<Range<usize>> {
        let index = self.ends_up_to(position);
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        let end = *self.ends.get(index)? as usize;
        (start != position).then_some(position..end)
    }

    /// Bytes of memory it takes, roughly.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<u32>() + OVERHEAD
    }

    fn ends_up_to(&self, position: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &'static str) -> Frame {
        Frame { kind: Kind::Text, bytes: payload.into() }
    }

    #[test]
    fn frames_stand_one_after_another_and_the_index_knows_their_ends() {
        let (chunk, count) = Chunk::encode(7, 41, &[text("ab"), text(""), text("cde")], 1000);
        assert_eq!(count, 3);
        assert_eq!(chunk.bytes(), b"\x81\x02ab\x81\x00\x81\x03cde");
        assert_eq!(chunk.completed(0, 11), 3);
        assert_eq!(chunk.completed(0, 4), 1);
        assert_eq!(chunk.completed(1, 5), 1);
        assert_eq!(chunk.completed(5, 11), 2);
        assert_eq!(chunk.rest_of_frame(0), None);
        assert_eq!(chunk.rest_of_frame(4), None);
        assert_eq!(chunk.rest_of_frame(1), Some(1..4));
        assert_eq!(chunk.rest_of_frame(8), Some(8..11));
        assert_eq!(chunk.rest_of_frame(11), None);
        assert_eq!(chunk.last(), Some(text("cde")));
        let (chunk, _) = Chunk::encode(7, 41, &[text("ab")], 1000);
        assert_eq!(chunk.last(), Some(text("ab")));
    }

    #[test]
    fn a_burst_over_the_limit_is_cut_between_publications() {
        let burst = [text("0123456789"), text("0123456789"), text("0123456789")];
        let (_, count) = Chunk::encode(0, 1, &burst, 20);
        assert_eq!(count, 2);
        let (one, count) = Chunk::encode(0, 1, &burst, 1);
        assert_eq!(count, 1);
        assert_eq!(Chunk::most(&burst, 1), 3 * one.size());
        assert_eq!(Chunk::most(&burst, 1000), Chunk::encode(0, 1, &burst, 1000).0.size());
    }
}
