//! A channel as a shard sees it: the same chunks as in the channel's own log, and the clients here that follow it.

use std::sync::Arc;

use slab::Slab;
use wire::Position;

use crate::{
    channel::{Channel, Chunk, Format, Log, Reader, Since, Start},
    delivery::{
        encoder::Ordered,
        shard::{
            cursor::Cursor,
            pending::{Piece, Rest},
            row::Row,
        },
    },
};

pub struct View {
    pub channel: Arc<Channel>,
    pub log: Log,
    /// The position of the last publication in the log.
    pub end: Position,
    /// Chunks that have just left the log. A client may have one of their frames half sent.
    pub evicted: Vec<Arc<Chunk>>,
    pub subscribers: Vec<Subscriber>,
    /// What is made for clients here at this moment.
    pub orders: Vec<Ordered>,
    /// What `end` was before the latest chunks were fetched.
    previous_end: Position,
    /// The last offset before the latest gap.
    gap: Option<u64>,
}

/// One cursor of one row.
#[derive(Clone, Copy)]
pub struct Subscriber {
    /// The row.
    pub slot: u32,
    /// Which of the row's cursors.
    pub nth: u16,
}

impl View {
    pub fn new(channel: Arc<Channel>, log: Log, end: Position) -> Self {
        Self {
            channel,
            log,
            end,
            evicted: Vec::new(),
            subscribers: Vec::new(),
            orders: Vec::new(),
            previous_end: end,
            gap: None,
        }
    }

    /// Fetches the channel's new chunks.
    pub fn absorb(&mut self, reader: &Arc<dyn Reader>) {
        let Self { channel, log, end, evicted, previous_end, gap, .. } = self;
        *previous_end = *end;
        log.set_max_bytes(channel.log_limit());
        // All new chunks stay until the fan-out that follows has offered them to clients.
        let first_new = log.next_seq();
        let oldest = channel.read(reader, first_new, |chunk| {
            *end = Position { epoch: chunk.epoch, offset: chunk.last_offset() };
            if chunk.is_gap() {
                *gap = Some(chunk.last_offset());
            }
            log.push(Arc::clone(chunk), first_new, |chunk| evicted.push(chunk));
        });
        // Chunks that the channel had no room for have none here either.
        while let Some(chunk) = log.pop_before(oldest.min(first_new)) {
            evicted.push(chunk);
        }
    }

    /// Adds a cursor. Returns it with the position that it begins after, which is `None` if a snapshot comes first.
    /// Returns `None` for both if there is a gap after the position that the cursor would go on from.
    pub fn subscribe(
        &mut self,
        view: u32,
        subscriber: Subscriber,
        start: Start,
        format: Format,
    ) -> Option<(Cursor, Option<Position>)> {
        let subscriber_index = u32::try_from(self.subscribers.len()).unwrap_or(u32::MAX);
        let mut cursor =
            Cursor { view, subscriber_index, seq: self.log.next_seq(), position: 0, given_by_tenant: true };
        let begins = match start {
            Start::Now if self.channel.gives_snapshot() => {
                cursor.leave(Since::Nothing);
                None
            }
            Start::Now => Some(self.end),
            Start::From(position) => {
                let since = self.enter_after(&mut cursor, position, format);
                Some(since.map_or(self.end, |()| position))
            }
            Start::After(position) => {
                self.enter_after(&mut cursor, position, format)?;
                Some(position)
            }
        };
        self.subscribers.push(subscriber);
        self.channel.joined();
        Some((cursor, begins))
    }

    /// Places a cursor after a position. `None`: there is a gap.
    fn enter_after(&mut self, cursor: &mut Cursor, position: Position, format: Format) -> Option<()> {
        if position == self.end && self.log.next_seq() == cursor.seq {
            return Some(());
        }
        self.log.prepend(self.channel.resume(position, self.log.oldest_seq())?);
        if let Some(chunk) = self.log.after(position.offset).next() {
            cursor.enter(chunk.seq, chunk.position_after(position.offset, format, &self.channel));
        }
        Some(())
    }

    /// What a client has whose cursor has just fallen off the log. A frame that is half sent counts.
    pub fn last_offset_of(&self, cursor: &Cursor, format: Format) -> u64 {
        // If its chunk is not here, the cursor stood at the log's end, and the next chunk was gone before it got here.
        let Some(chunk) = self.chunk_of(cursor) else { return self.previous_end.offset };
        let begun = || chunk.encoded(format, &self.channel).last_begun(cursor.position as usize);
        // At its beginning nothing needs to be encoded.
        (cursor.position > 0).then(begun).flatten().unwrap_or_else(|| chunk.before().offset)
    }

    /// Where the newest publication begins: the chunk, and the byte in it.
    pub fn newest(&self, format: Format) -> Option<(u64, usize)> {
        let chunk = self.log.from(0).rev().find(|chunk| !chunk.is_gap())?;
        Some((chunk.seq, chunk.position_after(chunk.last_offset().saturating_sub(1), format, &self.channel)))
    }

    /// Whether there is a gap between a cursor that has just fallen off the log and a chunk. Without such a chunk, the
    /// log's end counts.
    pub fn gap_before(&self, cursor: &Cursor, seq: u64) -> bool {
        let epoch = self.log.from(seq).next().map_or(self.end.epoch, |chunk| chunk.epoch);
        match self.chunk_of(cursor) {
            Some(chunk) => chunk.is_gap() || chunk.epoch != epoch,
            None => self.previous_end.epoch != epoch,
        }
    }

    /// Whether there is a gap after this offset.
    pub fn gap_after(&self, offset: u64) -> bool {
        self.gap.is_some_and(|before| before >= offset)
    }

    /// Removes a cursor. The last subscriber takes its place.
    pub fn unsubscribe(&mut self, subscriber_index: u32, rows: &mut Slab<Row>) {
        let index = subscriber_index as usize;
        if index >= self.subscribers.len() {
            return;
        }
        self.subscribers.swap_remove(index);
        self.channel.left();
        let Some(moved) = self.subscribers.get(index) else { return };
        let cursor = rows
            .get_mut(moved.slot as usize)
            .and_then(|row| row.cursors.as_mut_slice().get_mut(usize::from(moved.nth)));
        if let Some(cursor) = cursor {
            cursor.subscriber_index = subscriber_index;
        }
    }

    /// What is left to send of the frame that a cursor is inside. `None`: the cursor is at the start of a frame.
    pub fn rest_of_frame(&self, cursor: &Cursor, format: Format) -> Option<Rest> {
        let chunk = self.chunk_of(cursor).filter(|_| cursor.position > 0 && cursor.since().is_none())?;
        let range = chunk.encoded(format, &self.channel).rest(cursor.position as usize)?;
        Some(Rest { piece: Piece::Shared(Arc::clone(chunk), format), range })
    }

    fn chunk_of(&self, cursor: &Cursor) -> Option<&Arc<Chunk>> {
        self.evicted.iter().chain(self.log.from(cursor.seq).take(1)).find(|chunk| chunk.seq == cursor.seq)
    }
}
