//! One burst of publications, encoded once for all who read it.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use wire::{Entry, Epoch, Frame, Key, Kind, Position, frame, raw};

use crate::channel::{
    Publication,
    encoding::{EncodedBytes, Encodings},
    ledger::{ChunkCharge, LogLedger},
};

/// Bytes that a chunk takes besides its frames and their index: itself, its allocations, its places in logs.
const OVERHEAD: usize = 176;

/// Bytes of a publication's frame from which on it has a chunk of its own, which is encoded where nobody waits. A chunk
/// of smaller ones takes less than a millisecond.
pub(super) const LARGE: usize = 32 << 10;

/// Bytes that the allocator adds to an allocation.
const ALLOCATION: usize = 16;

const NO_KEY: Key = Key { name: None, remove: false };

/// Publications of one epoch, one after another. A chunk never changes, and is shared by reference. A chunk without
/// publications stands for the gap before its epoch.
pub struct Chunk {
    /// Its position in the channel's log. Positions have no gaps.
    pub seq: u64,
    /// When it was published.
    pub at: Instant,
    pub epoch: Epoch,
    offsets: Offsets,
    pub(super) raw: EncodedBytes,
    pub(super) encodings: OnceLock<Box<Encodings>>,
    /// The publications' keys. `None`: no publication here has one.
    keys: Option<Box<[Key]>>,
    pub(super) charge: ChunkCharge,
}

/// The publications' offsets, increasing.
enum Offsets {
    /// Consecutive ones, from this one on.
    From(u64),
    /// One for each publication.
    Each(Box<[u64]>),
}

/// A publication, borrowed from its chunk.
#[derive(Clone, Copy)]
pub(super) struct Item<'c> {
    pub offset: u64,
    pub key: &'c Key,
    pub kind: Kind,
    pub payload: &'c [u8],
}

impl Chunk {
    /// Encodes publications until the chunk has `limit` bytes or none are left. A large one is alone. Returns how many
    /// it took, which is one at least. `first`: the position of the first publication.
    pub fn encode(
        seq: u64,
        first: Position,
        publications: &[Publication],
        limit: usize,
        ledger: &Arc<LogLedger>,
    ) -> (Self, usize) {
        let mut size = 0;
        let mut count = 0;
        for Publication { data, .. } in publications {
            let frame = frame::header_len(data.bytes.len()) + data.bytes.len();
            if frame > LARGE && count > 0 {
                break;
            }
            size += frame;
            count += 1;
            if size >= limit || frame > LARGE {
                break;
            }
        }
        let taken = || publications.iter().take(count);
        let raw = match publications {
            [Publication { framed: Some(framed), .. }, ..] => EncodedBytes::of_one(Bytes::clone(framed)),
            _ => EncodedBytes::new(taken().map(|publication| &publication.data), size, raw::write),
        };
        let keyed = taken().any(|publication| publication.key.is_some());
        let keys = keyed.then(|| taken().map(Publication::key).collect());
        (Self::new(seq, first.epoch, Offsets::From(first.offset), raw, keys, ledger), count)
    }

    /// Encodes a snapshot, whose publications are ordered by offset. It comes before the chunk at position `seq`.
    pub fn snapshot<'e>(
        seq: u64,
        epoch: Epoch,
        entries: impl Iterator<Item = (u64, Key, &'e Frame)> + Clone,
        ledger: &Arc<LogLedger>,
    ) -> Self {
        let size = |frame: &Frame| frame::header_len(frame.bytes.len()) + frame.bytes.len();
        let size = entries.clone().map(|(.., data)| size(data)).sum();
        let raw = EncodedBytes::new(entries.clone().map(|(.., data)| data), size, raw::write);
        let offsets = Offsets::Each(entries.clone().map(|(offset, ..)| offset).collect());
        let keys = Some(entries.map(|(_, key, _)| key).collect());
        Self::new(seq, epoch, offsets, raw, keys, ledger)
    }

    /// A chunk that stands for what may be missing before the position `first`, where an epoch begins.
    pub fn gap(seq: u64, first: Position, ledger: &Arc<LogLedger>) -> Self {
        let raw = EncodedBytes { bytes: Bytes::new(), ends: Box::default() };
        Self::new(seq, first.epoch, Offsets::From(first.offset), raw, None, ledger)
    }

    fn new(
        seq: u64,
        epoch: Epoch,
        offsets: Offsets,
        raw: EncodedBytes,
        keys: Option<Box<[Key]>>,
        ledger: &Arc<LogLedger>,
    ) -> Self {
        let charge = ChunkCharge::new(ledger);
        Self { seq, at: Instant::now(), epoch, offsets, raw, encodings: OnceLock::new(), keys, charge }
    }

    /// The most bytes of memory that the chunks of a burst can take, cut at `limit`.
    pub fn max_size(burst: &[Publication], limit: usize) -> usize {
        let frame = |Publication { data, .. }: &Publication| frame::header_len(data.bytes.len()) + data.bytes.len();
        let frames: usize = burst.iter().map(frame).sum();
        let keyed = burst.iter().any(|publication| publication.key.is_some());
        let size = |publication: &Publication| key_size(publication.key.as_ref());
        let keys: usize = if keyed { burst.iter().map(size).sum() } else { 0 };
        // Each chunk but the last has at least `limit` bytes, or is large, or comes before one that is.
        let chunks = burst.len().min(1 + frames / limit.max(1) + 2 * frames / LARGE);
        frames + burst.len() * size_of::<u32>() + keys + chunks * OVERHEAD
    }

    /// A copy at another position, for another log.
    #[cfg(test)]
    pub fn copied(&self, seq: u64, ledger: &Arc<LogLedger>) -> Self {
        let Offsets::From(first) = &self.offsets else { unreachable!("a snapshot is no part of a log") };
        let raw = EncodedBytes { bytes: self.raw.bytes.clone(), ends: self.raw.ends.clone() };
        Self::new(seq, self.epoch, Offsets::From(*first), raw, self.keys.clone(), ledger)
    }

    /// Whether it is much work to encode.
    pub fn is_large(&self) -> bool {
        self.raw.bytes.len() > 3 * LARGE
            || self.raw.bytes.len() > LARGE && matches!(self.offsets, Offsets::From(_)) && self.len() == 1
    }

    /// Whether it stands for a gap.
    pub fn is_gap(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes its frames have.
    pub fn bytes(&self) -> usize {
        self.raw.bytes.len()
    }

    pub fn first_offset(&self) -> u64 {
        self.offset(0)
    }

    /// The offset of the last publication, or of the last before a gap.
    pub fn last_offset(&self) -> u64 {
        match (&self.offsets, self.len()) {
            (Offsets::From(first), length) => (first + length as u64).saturating_sub(1),
            (Offsets::Each(_), length) => self.offset(length.saturating_sub(1)),
        }
    }

    /// The position of a client that has received everything before this chunk, in this chunk's epoch.
    pub fn before(&self) -> Position {
        Position { epoch: self.epoch, offset: self.first_offset().saturating_sub(1) }
    }

    /// The last publication's payload, which keeps the chunk.
    pub fn last(self: &Arc<Self>) -> Option<Frame> {
        Some(self.held(self.len().checked_sub(1)?)?.data)
    }

    /// Its publications with offsets greater than `offset`. Their payloads keep the chunk.
    pub fn after(self: &Arc<Self>, offset: u64) -> impl DoubleEndedIterator<Item = Entry> {
        self.between(offset, u64::MAX)
    }

    /// Those of them with offsets smaller than `end`.
    pub fn between(self: &Arc<Self>, offset: u64, end: u64) -> impl DoubleEndedIterator<Item = Entry> {
        let end = self.index_after(end.saturating_sub(1));
        (self.index_after(offset)..end).filter_map(|index| self.held(index))
    }

    /// A publication whose payload keeps the chunk.
    fn held(self: &Arc<Self>, index: usize) -> Option<Entry> {
        let Item { offset, key, kind, .. } = self.item(index)?;
        let bytes = Bytes::from_owner(Payload { chunk: Arc::clone(self), index });
        Some(Entry { offset, key: key.clone(), data: Frame { kind, bytes } })
    }

    /// Its publications with keys, their payloads copied.
    pub fn keyed(&self) -> impl Iterator<Item = Entry> {
        // A chunk without keys is not searched.
        let all = if self.keys.is_some() { self.len() } else { 0 };
        (0..all).filter_map(|index| self.entry(index)).filter(|entry| entry.key.name.is_some())
    }

    /// The smallest offset after which at most `bytes` bytes of publications follow in this chunk.
    pub fn last_within(&self, bytes: usize) -> u64 {
        let EncodedBytes { bytes: all, ends } = &self.raw;
        let from = all.len().saturating_sub(bytes);
        let index = if from == 0 { 0 } else { 1 + ends.partition_point(|end| (*end as usize) < from) };
        self.offset(index).saturating_sub(1)
    }

    /// Bytes of memory that it takes, roughly, without its other formats.
    pub fn size(&self) -> usize {
        let offsets = if let Offsets::Each(offsets) = &self.offsets { size_of_val(&**offsets) } else { 0 };
        let keys = self.keys.as_ref().map_or(0, |keys| keys.iter().map(|key| key_size(key.name.as_ref())).sum());
        self.raw.bytes.len() + size_of_val(&*self.raw.ends) + offsets + keys + OVERHEAD
    }

    /// Charges the bytes that it takes to its log.
    pub fn charge(&self) {
        self.charge.add(self.size());
    }

    /// Notes that its channel has dropped it. From now on its bytes count as its holders'.
    pub fn forget(&self) {
        // A snapshot's own bytes are counted with its keys while the channel has it.
        let more = if matches!(self.offsets, Offsets::Each(_)) { self.size() } else { 0 };
        self.charge.pin(more);
    }

    /// Whether its channel has dropped it, so that only its holders keep it.
    pub fn is_pinned(&self) -> bool {
        self.charge.is_pinned()
    }

    fn len(&self) -> usize {
        self.raw.ends.len()
    }

    pub(super) fn offset(&self, index: usize) -> u64 {
        match &self.offsets {
            Offsets::From(first) => first + index as u64,
            Offsets::Each(offsets) => offsets.get(index).copied().unwrap_or_default(),
        }
    }

    /// The index of the first publication with an offset greater than `offset`.
    pub(super) fn index_after(&self, offset: u64) -> usize {
        match &self.offsets {
            Offsets::From(first) => {
                usize::try_from(offset.saturating_add(1).saturating_sub(*first)).unwrap_or(usize::MAX)
            }
            Offsets::Each(offsets) => offsets.partition_point(|own| *own <= offset),
        }
        .min(self.len())
    }

    pub(super) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        (0..self.len()).filter_map(|index| self.item(index))
    }

    fn item(&self, index: usize) -> Option<Item<'_>> {
        let (kind, payload) = frame::decode(self.raw.get(index)?)?;
        let key = self.keys.as_ref().and_then(|keys| keys.get(index)).unwrap_or(&NO_KEY);
        Some(Item { offset: self.offset(index), key, kind, payload })
    }

    fn entry(&self, index: usize) -> Option<Entry> {
        let Item { offset, key, kind, payload } = self.item(index)?;
        Some(Entry { offset, key: key.clone(), data: Frame { kind, bytes: Bytes::copy_from_slice(payload) } })
    }
}

/// A publication's payload, as long as somebody needs it.
struct Payload {
    chunk: Arc<Chunk>,
    index: usize,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.chunk.item(self.index).map_or(&[], |item| item.payload)
    }
}

/// Bytes of memory that a key takes, with its name's allocation.
fn key_size(name: Option<&Arc<str>>) -> usize {
    size_of::<Key>() + name.map_or(0, |name| name.len() + 2 * size_of::<usize>() + ALLOCATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Account, channel::Format};

    fn ledger() -> Arc<LogLedger> {
        LogLedger::of_test(&Account::of_test())
    }

    fn text(payload: &'static str) -> Publication {
        let data = Frame { kind: Kind::Text, bytes: payload.into() };
        Publication { channel: "c".into(), key: None, remove: false, data, framed: None }
    }

    fn first() -> Position {
        "1:41".parse().unwrap()
    }

    #[test]
    fn frames_stand_one_after_another_and_the_index_knows_their_ends() {
        let (chunk, count) = Chunk::encode(7, first(), &[text("ab"), text(""), text("cde")], 1000, &ledger());
        assert_eq!(count, 3);
        let raw = chunk.get_encoded(Format::Raw).unwrap();
        assert_eq!(raw.bytes(), b"\x81\x02ab\x81\x00\x81\x03cde");
        assert_eq!(raw.completed(0, 11), 3);
        assert_eq!(raw.completed(0, 4), 1);
        assert_eq!(raw.completed(1, 5), 1);
        assert_eq!(raw.completed(5, 11), 2);
        assert_eq!(raw.rest(0), None);
        assert_eq!(raw.rest(4), None);
        assert_eq!(raw.rest(1), Some(1..4));
        assert_eq!(raw.rest(8), Some(8..11));
        assert_eq!(raw.rest(11), None);
        assert_eq!(Arc::new(chunk).last(), Some(text("cde").data));
        let (chunk, _) = Chunk::encode(7, first(), &[text("ab")], 1000, &ledger());
        assert_eq!(Arc::new(chunk).last(), Some(text("ab").data));
    }

    #[test]
    fn positions_and_offsets_belong_together() {
        let (chunk, _) = Chunk::encode(7, first(), &[text("ab"), text(""), text("cde")], 1000, &ledger());
        let chunk = Arc::new(chunk);
        let raw = chunk.get_encoded(Format::Raw).unwrap();
        let begun = [0, 1, 4, 5, 6, 7, 11].map(|position| raw.last_begun(position));
        assert_eq!(begun, [None, Some(41), Some(41), Some(42), Some(42), Some(43), Some(43)]);
        assert_eq!([0, 40, 41, 42, 43, u64::MAX].map(|offset| raw.position_after(offset)), [0, 0, 4, 6, 11, 11]);
        assert_eq!(chunk.after(41).map(|entry| entry.offset).collect::<Vec<_>>(), [42, 43]);
        assert_eq!((chunk.first_offset(), chunk.last_offset()), (41, 43));
        assert_eq!([0, 4, 5, 6, 7, 10, 11, 12].map(|bytes| chunk.last_within(bytes)), [43, 43, 42, 42, 41, 41, 40, 40]);
        let next = [0, 4, 6, 11].map(|position| raw.next(position).map(|(end, reached)| (end, reached.offset)));
        assert_eq!(next, [Some((4, 41)), Some((6, 42)), Some((11, 43)), None]);
        let frames = [text("x").data, text("yz").data];
        let entries = [(3, &frames[0]), (9, &frames[1])].map(|(offset, frame)| (offset, Key::default(), frame));
        let chunk = Chunk::snapshot(7, first().epoch, entries.into_iter(), &ledger());
        let raw = chunk.get_encoded(Format::Raw).unwrap();
        assert_eq!([2, 3, 8, 9].map(|offset| raw.position_after(offset)), [0, 3, 3, 7]);
        assert_eq!([0, 1, 3, 4].map(|position| raw.last_begun(position)), [None, Some(3), Some(3), Some(9)]);
    }

    #[test]
    fn a_burst_over_the_limit_is_cut_between_publications() {
        let burst = [text("0123456789"), text("0123456789"), text("0123456789")];
        let (_, count) = Chunk::encode(0, first(), &burst, 20, &ledger());
        assert_eq!(count, 2);
        let (one, count) = Chunk::encode(0, first(), &burst, 1, &ledger());
        assert_eq!(count, 1);
        assert_eq!(Chunk::max_size(&burst, 1), 3 * one.size());
        assert_eq!(Chunk::max_size(&burst, 1000), Chunk::encode(0, first(), &burst, 1000, &ledger()).0.size());
    }

    #[test]
    fn a_gap_stands_between_what_is_before_and_behind_it() {
        let (before, _) = Chunk::encode(7, first(), &[text("ab")], 1000, &ledger());
        let gap = Chunk::gap(8, "2:42".parse().unwrap(), &ledger());
        let (after, _) = Chunk::encode(9, "2:42".parse().unwrap(), &[text("cd")], 1000, &ledger());
        assert!(gap.is_gap() && !before.is_gap());
        assert_eq!(
            (before.last_offset(), gap.last_offset(), gap.first_offset(), after.first_offset()),
            (41, 41, 42, 42)
        );
        assert_eq!(gap.before(), "2:41".parse().unwrap());
        let gap = Arc::new(gap);
        assert_eq!((gap.last(), gap.bytes(), gap.after(0).count()), (None, 0, 0));
    }
}
