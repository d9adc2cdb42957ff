//! A chunk's publications, or the gap that it stands for, in the formats that clients get. WebSocket frames are there
//! from the start. Another format is encoded when the first client needs it, and all clients of the format share it.

use std::{
    ops::Range,
    sync::{OnceLock, atomic::Ordering},
};

use bytes::Bytes;
use wire::{Compression, Position, SHARED_WINDOW_BITS, centrifuge, frame, raw, sse};

use crate::{
    channel::{Channel, Chunk, chunk::Item},
    memory::drop_later,
};

/// How publications are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// WebSocket frames with the payloads as they are.
    #[default]
    Raw,
    /// WebSocket frames, compressed with permessage-deflate (RFC 7692).
    Deflated,
    /// Server-sent events.
    Sse,
    /// WebSocket frames with pushes of the Centrifuge protocol.
    Centrifuge,
    /// The same frames, compressed.
    CentrifugeDeflated,
}

impl Format {
    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Deflated | Self::CentrifugeDeflated)
    }
}

/// Bytes that a format takes besides its frames and their index: its allocations, and its part of [`Encodings`].
const OVERHEAD: usize = 96;
/// Most bytes of a chunk that are written in a format, or compressed, while others wait: a millisecond or less.
const COPIED_AT_ONCE: usize = 512 << 10;
const COMPRESSED_AT_ONCE: usize = 64 << 10;
/// How many formats there are besides [`Format::Raw`].
const LATER_FORMATS: usize = 4;

/// Encoded publications, one after another.
pub(super) struct EncodedBytes {
    pub bytes: Bytes,
    /// Where each publication ends in `bytes`. In a chunk that stands for a gap: where its mark ends, if the format has
    /// one.
    pub ends: Box<[u32]>,
}

impl Drop for EncodedBytes {
    fn drop(&mut self) {
        drop_later(std::mem::take(&mut self.bytes));
    }
}

impl EncodedBytes {
    /// Calls `write` for each item. The result is allocated at its exact size, since a log keeps its chunks for long.
    pub fn new<I>(items: impl Iterator<Item = I>, size: usize, mut write: impl FnMut(I, &mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(items.size_hint().0);
        for item in items {
            write(item, &mut bytes);
            // The limit of a tenant's logs keeps this far below 4 GiB.
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        // At its exact size.
        Self { bytes: bytes.into_boxed_slice().into(), ends: ends.into() }
    }

    /// A frame that is made already.
    pub fn of_one(frame: Bytes) -> Self {
        let end = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        Self { bytes: frame, ends: [end].into() }
    }

    pub fn start(&self, index: usize) -> usize {
        index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize)
    }

    /// The bytes of one publication.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.bytes.get(self.start(index)..*self.ends.get(index)? as usize)
    }

    /// Bytes of memory that it takes, with its part of [`Encodings`].
    fn size(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.ends) + OVERHEAD
    }

    fn ends_up_to(&self, position: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= position)
    }
}

/// A chunk in the formats besides [`Format::Raw`], as far as they were needed.
#[derive(Default)]
pub(super) struct Encodings {
    by_format: [OnceLock<EncodedBytes>; LATER_FORMATS],
}

/// A chunk in one format.
#[derive(Clone, Copy)]
pub struct Encoded<'c> {
    chunk: &'c Chunk,
    encoded: &'c EncodedBytes,
}

impl Chunk {
    /// The chunk in a format, which is encoded now if nobody has needed it yet. `channel`: its own, which must not be
    /// locked: if the tenant's logs are full now, they let go of older chunks.
    pub fn encoded(&self, format: Format, channel: &Channel) -> Encoded<'_> {
        let Some(index) = index(format) else { return Encoded { chunk: self, encoded: &self.raw } };
        let encodings = self.encodings.get_or_init(Box::default);
        let encoded = encodings.by_format.get(index).map_or(&self.raw, |encoded| {
            encoded.get_or_init(|| {
                let encoded = self.write(format, channel);
                self.charge.add(encoded.size());
                self.charge.relieve();
                encoded
            })
        });
        Encoded { chunk: self, encoded }
    }

    /// Whether it has yet to be encoded in a format, which is too much work for a thread that others wait for.
    pub fn is_work(&self, format: Format) -> bool {
        let at_once = match format {
            Format::Raw => return false,
            Format::Sse | Format::Centrifuge => COPIED_AT_ONCE,
            Format::Deflated | Format::CentrifugeDeflated => COMPRESSED_AT_ONCE,
        };
        self.bytes() > at_once && self.is_large() && self.get_encoded(format).is_none()
    }

    /// Where the first publication with an offset greater than `offset` begins in a format.
    pub fn position_after(&self, offset: u64, format: Format, channel: &Channel) -> usize {
        // At its beginning nothing needs to be encoded, and a large publication is alone in its chunk.
        if self.index_after(offset) == 0 { 0 } else { self.encoded(format, channel).position_after(offset) }
    }

    /// The chunk in a format, if that has been encoded already.
    pub fn get_encoded(&self, format: Format) -> Option<Encoded<'_>> {
        let encoded = match index(format) {
            None => &self.raw,
            Some(index) => self.encodings.get()?.by_format.get(index)?.get()?,
        };
        Some(Encoded { chunk: self, encoded })
    }

    fn write(&self, format: Format, channel: &Channel) -> EncodedBytes {
        if self.is_gap() {
            let mark = (format == Format::Sse).then_some(());
            return EncodedBytes::new(mark.into_iter(), 0, |(), out| sse::gap(&channel.name, Some(self.before()), out));
        }
        let compression =
            Compression { above: channel.compress_above.load(Ordering::Relaxed), window_bits: SHARED_WINDOW_BITS };
        let mut scratch = Vec::new();
        EncodedBytes::new(self.items(), self.raw.bytes.len(), |item, out| match format {
            Format::Raw => frame::encode(raw::opcode(item.kind), item.payload, out),
            Format::Deflated => compression.encode(raw::opcode(item.kind), item.payload, out),
            Format::Sse => {
                sse::event(Position { epoch: self.epoch, offset: item.offset }, item.kind, item.payload, out)
            }
            Format::Centrifuge | Format::CentrifugeDeflated => {
                let Item { offset, key, kind, payload } = item;
                scratch.clear();
                centrifuge::publication(
                    &channel.name,
                    offset,
                    key.name.as_deref(),
                    key.remove,
                    (kind, payload),
                    &mut scratch,
                );
                match format {
                    Format::CentrifugeDeflated => compression.encode(frame::TEXT, &scratch, out),
                    _ => frame::encode(frame::TEXT, &scratch, out),
                }
            }
        })
    }
}

fn index(format: Format) -> Option<usize> {
    match format {
        Format::Raw => None,
        Format::Deflated => Some(0),
        Format::Sse => Some(1),
        Format::Centrifuge => Some(2),
        Format::CentrifugeDeflated => Some(3),
    }
}

impl<'c> Encoded<'c> {
    /// The bytes of all publications.
    pub fn bytes(&self) -> &'c [u8] {
        &self.encoded.bytes
    }

    /// Where the first publication with an offset greater than `offset` begins.
    pub fn position_after(&self, offset: u64) -> usize {
        self.encoded.start(self.chunk.index_after(offset))
    }

    /// The offset of the last publication that begins before `position`.
    pub fn last_begun(&self, position: usize) -> Option<u64> {
        if self.chunk.is_gap() {
            return None;
        }
        let whole = self.encoded.ends_up_to(position);
        let begun = whole + usize::from(self.encoded.start(whole) < position);
        Some(self.chunk.offset(begun.checked_sub(1)?))
    }

    /// How many publications are complete once the bytes from `from` to `to` are sent, and were not before.
    pub fn completed(&self, from: usize, to: usize) -> usize {
        if self.chunk.is_gap() {
            return 0;
        }
        if from == 0 && to == self.encoded.bytes.len() {
            return self.encoded.ends.len();
        }
        self.encoded.ends_up_to(to) - self.encoded.ends_up_to(from)
    }

    /// The rest of the publication that `position` is inside of. `None`: a publication begins there.
    pub fn rest(&self, position: usize) -> Option<Range<usize>> {
        let index = self.encoded.ends_up_to(position);
        let end = *self.encoded.ends.get(index)? as usize;
        (self.encoded.start(index) != position).then_some(position..end)
    }

    /// The publication, or the mark of a gap, that begins at a byte position. Returns where it ends, and the channel
    /// position that a client has reached with it.
    pub fn next(&self, position: usize) -> Option<(usize, Position)> {
        let index = self.encoded.ends_up_to(position);
        let end = *self.encoded.ends.get(index)? as usize;
        let offset = if self.chunk.is_gap() { self.chunk.before().offset } else { self.chunk.offset(index) };
        Some((end, Position { epoch: self.chunk.epoch, offset }))
    }
}
