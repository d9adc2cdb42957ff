//! One burst of publications, encoded once for all who read it.

use std::{ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    channel::{Frame, Kind, Publication},
    client::frame,
};

/// What a chunk takes besides its frames and their index: itself, its allocations, its places in logs.
const OVERHEAD: usize = 128;

/// What the allocator adds.
const ALLOCATION: usize = 16;

/// Publications as WebSocket frames, one after another: immutable, shared by reference.
#[derive(Debug)]
pub struct Chunk {
    /// Position in the channel's log, without gaps.
    pub seq: u64,
    /// When it was published.
    pub at: Instant,
    offsets: Offsets,
    bytes: Box<[u8]>,
    /// Where each publication's frame ends in `bytes`.
    ends: Box<[u32]>,
    /// `None`: no publication here has one.
    keys: Option<Box<[Key]>>,
}

/// The publications' offsets, increasing.
#[derive(Debug)]
enum Offsets {
    /// From this one on, without gaps.
    From(u64),
    Each(Box<[u64]>),
}

/// What a publication is the latest of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub name: Option<Arc<str>>,
    /// It says that the key is no more.
    pub remove: bool,
}

impl Key {
    /// Bytes of memory it takes, its name's allocation included.
    fn size(&self) -> usize {
        Self::size_with(self.name.as_ref())
    }

    fn size_with(name: Option<&Arc<str>>) -> usize {
        size_of::<Self>() + name.map_or(0, |name| name.len() + 2 * size_of::<usize>() + ALLOCATION)
    }
}

/// A publication as a chunk has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub key: Key,
    pub data: Frame,
}

impl Chunk {
    /// Encodes publications until they are all in or `limit` bytes are passed; returns how many went in, at least one.
    pub fn encode(seq: u64, first_offset: u64, publications: &[Publication], limit: usize) -> (Self, usize) {
        let mut size = 0;
        let mut count = 0;
        for Publication { data, .. } in publications {
            size += frame::header_len(data.bytes.len()) + data.bytes.len();
            count += 1;
            if size >= limit {
                break;
            }
        }
        let taken = || publications.iter().take(count);
        let (bytes, ends) = encode(taken().map(|publication| &publication.data), size);
        let keyed = taken().any(|publication| publication.key.is_some());
        let keys = keyed.then(|| taken().map(Publication::key).collect());
        let offsets = Offsets::From(first_offset);
        (Self { seq, at: Instant::now(), offsets, bytes, ends, keys }, count)
    }

    /// Publications out of their turn: those of a snapshot, by their offsets. It stands before position `seq`.
    pub fn snapshot<'e>(seq: u64, entries: impl Iterator<Item = (u64, Key, &'e Frame)> + Clone) -> Self {
        let size = |frame: &Frame| frame::header_len(frame.bytes.len()) + frame.bytes.len();
        let (bytes, ends) =
            encode(entries.clone().map(|(.., data)| data), entries.clone().map(|(.., data)| size(data)).sum());
        let offsets = Offsets::Each(entries.clone().map(|(offset, ..)| offset).collect());
        let keys = Some(entries.map(|(_, key, _)| key).collect());
        Self { seq, at: Instant::now(), offsets, bytes, ends, keys }
    }

    /// Bytes of this chunk, copied, without what it knows of them: it lets go of all others.
    pub fn part(&self, range: Range<usize>) -> Self {
        let bytes = self.bytes.get(range).unwrap_or_default().into();
        Self { seq: self.seq, at: self.at, offsets: Offsets::From(0), bytes, ends: Box::default(), keys: None }
    }

    /// The most bytes of memory that the chunks of a burst can take, cut at `limit`.
    pub fn most(burst: &[Publication], limit: usize) -> usize {
        let frame = |Publication { data, .. }: &Publication| frame::header_len(data.bytes.len()) + data.bytes.len();
        let frames: usize = burst.iter().map(frame).sum();
        let keyed = burst.iter().any(|publication| publication.key.is_some());
        let size = |publication: &Publication| Key::size_with(publication.key.as_ref());
        let keys: usize = if keyed { burst.iter().map(size).sum() } else { 0 };
        // Each chunk but the last has `limit` bytes at least.
        let chunks = burst.len().min(1 + frames / limit.max(1));
        frames + burst.len() * size_of::<u32>() + keys + chunks * OVERHEAD
    }

    /// All frames.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn first_offset(&self) -> u64 {
        self.offset(0)
    }

    /// The offset of the last publication.
    pub fn last_offset(&self) -> u64 {
        self.offset(self.ends.len().saturating_sub(1))
    }

    /// The last publication's payload, copied.
    pub fn last(&self) -> Option<Frame> {
        Some(self.entry(self.ends.len().checked_sub(1)?)?.data)
    }

    /// Its publications with offsets greater than `offset`, their payloads copied.
    pub fn after(&self, offset: u64) -> impl DoubleEndedIterator<Item = Entry> {
        (self.index_after(offset)..self.ends.len()).filter_map(|index| self.entry(index))
    }

    /// Where the first publication with an offset greater than `offset` begins.
    pub fn position_after(&self, offset: u64) -> usize {
        self.start(self.index_after(offset))
    }

    /// The offset of the last publication of which there is a byte before `position`.
    pub fn begun(&self, position: usize) -> Option<u64> {
        let whole = self.ends_up_to(position);
        let begun = whole + usize::from(self.start(whole) < position);
        Some(self.offset(begun.checked_sub(1)?))
    }

    /// The offset behind which publications of at most so many bytes follow here.
    pub fn last_within(&self, bytes: usize) -> u64 {
        let from = self.bytes.len().saturating_sub(bytes);
        let index = if from == 0 { 0 } else { 1 + self.ends.partition_point(|end| (*end as usize) < from) };
        self.offset(index).saturating_sub(1)
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
        let end = *self.ends.get(index)? as usize;
        (self.start(index) != position).then_some(position..end)
    }

    /// Bytes of memory it takes, roughly.
    pub fn size(&self) -> usize {
        let offsets = if let Offsets::Each(offsets) = &self.offsets { size_of_val(&**offsets) } else { 0 };
        let keys = self.keys.as_ref().map_or(0, |keys| keys.iter().map(Key::size).sum());
        self.bytes.len() + self.ends.len() * size_of::<u32>() + offsets + keys + OVERHEAD
    }

    fn offset(&self, index: usize) -> u64 {
        match &self.offsets {
            Offsets::From(first) => first + index as u64,
            Offsets::Each(offsets) => offsets.get(index).copied().unwrap_or_default(),
        }
    }

    /// How many publications have no greater offset.
    fn index_after(&self, offset: u64) -> usize {
        match &self.offsets {
            Offsets::From(first) => {
                usize::try_from(offset.saturating_add(1).saturating_sub(*first)).unwrap_or(usize::MAX)
            }
            Offsets::Each(offsets) => offsets.partition_point(|own| *own <= offset),
        }
        .min(self.ends.len())
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize)
    }

    fn entry(&self, index: usize) -> Option<Entry> {
        let encoded = self.bytes.get(self.start(index)..*self.ends.get(index)? as usize)?;
        let (kind, payload) = frame::decode(encoded)?;
        let key = self.keys.as_ref().and_then(|keys| keys.get(index)).cloned().unwrap_or_default();
        Some(Entry { offset: self.offset(index), key, data: Frame { kind, bytes: Bytes::copy_from_slice(payload) } })
    }

    fn ends_up_to(&self, position: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= position)
    }
}

/// Frames one after another, and where each ends. Allocated at the exact size: a chunk is kept as long as its channel's
/// log reaches back.
fn encode<'f>(frames: impl Iterator<Item = &'f Frame>, size: usize) -> (Box<[u8]>, Box<[u32]>) {
    let mut bytes = Vec::with_capacity(size);
    let mut ends = Vec::with_capacity(frames.size_hint().0);
    for Frame { kind, bytes: payload } in frames {
        let opcode = match kind {
            Kind::Text => frame::TEXT,
            Kind::Binary => frame::BINARY,
        };
        frame::encode(opcode, payload, &mut bytes);
        // What bounds a tenant's logs keeps all of this far below 4 GiB.
        ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }
    (bytes.into(), ends.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &'static str) -> Publication {
        let data = Frame { kind: Kind::Text, bytes: payload.into() };
        Publication { channel: "c".into(), key: None, remove: false, data }
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
        assert_eq!(chunk.last(), Some(text("cde").data));
        let (chunk, _) = Chunk::encode(7, 41, &[text("ab")], 1000);
        assert_eq!(chunk.last(), Some(text("ab").data));
    }

    #[test]
    fn positions_and_offsets_belong_together() {
        let (chunk, _) = Chunk::encode(7, 41, &[text("ab"), text(""), text("cde")], 1000);
        let begun = [0, 1, 4, 5, 6, 7, 11].map(|position| chunk.begun(position));
        assert_eq!(begun, [None, Some(41), Some(41), Some(42), Some(42), Some(43), Some(43)]);
        assert_eq!([0, 40, 41, 42, 43, u64::MAX].map(|offset| chunk.position_after(offset)), [0, 0, 4, 6, 11, 11]);
        assert_eq!(chunk.after(41).map(|entry| entry.offset).collect::<Vec<_>>(), [42, 43]);
        assert_eq!((chunk.first_offset(), chunk.last_offset()), (41, 43));
        assert_eq!([0, 4, 5, 6, 7, 10, 11, 12].map(|bytes| chunk.last_within(bytes)), [43, 43, 42, 42, 41, 41, 40, 40]);
        let part = chunk.part(1..4);
        assert_eq!((part.bytes(), part.completed(0, 3), part.rest_of_frame(1)), (&b"\x02ab"[..], 0, None));
        let frames = [text("x").data, text("yz").data];
        let entries = [(3, &frames[0]), (9, &frames[1])].map(|(offset, frame)| (offset, Key::default(), frame));
        let chunk = Chunk::snapshot(7, entries.into_iter());
        assert_eq!([2, 3, 8, 9].map(|offset| chunk.position_after(offset)), [0, 3, 3, 7]);
        assert_eq!([0, 1, 3, 4].map(|position| chunk.begun(position)), [None, Some(3), Some(3), Some(9)]);
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
