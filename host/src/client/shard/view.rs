//! A channel as a shard sees it: the same chunks as the channel's own log, and who follows it here.

use std::{ops::Range, sync::Arc};

use slab::Slab;

use crate::{
    channel::{Channel, Chunk, Log, Reader, Since, Start},
    client::shard::{cursor::Cursor, row::Row},
};

pub struct View {
    pub channel: Arc<Channel>,
    pub log: Log,
    /// Chunks that left the log just now: a client may have one of their frames half sent.
    pub gone: Vec<Arc<Chunk>>,
    pub subscribers: Vec<Subscriber>,
    /// The last offset before the chunks that were fetched last.
    pub had: u64,
}

/// One cursor of one row.
#[derive(Clone, Copy)]
pub struct Subscriber {
    pub slot: u32,
    pub nth: u16,
}

impl View {
    /// Fetches the channel's new chunks.
    pub fn absorb(&mut self, reader: &Arc<dyn Reader>) {
        let Self { channel, log, gone, had, .. } = self;
        *had = log.newest().map_or(*had, |chunk| chunk.last_offset());
        // All that is fresh stays until the fan-out that follows has offered it.
        let fresh = log.next_seq();
        let oldest = channel.read(reader, fresh, |chunk| log.push(Arc::clone(chunk), fresh, |chunk| gone.push(chunk)));
        // What the channel had no room for has none here.
        while let Some(chunk) = log.pop_before(oldest.min(fresh)) {
            gone.push(chunk);
        }
    }

    /// A new cursor; `None`: there is a gap behind the position that it would go on after.
    pub fn subscribe(&mut self, view: u32, subscriber: Subscriber, start: Start) -> Option<Cursor> {
        let at = u32::try_from(self.subscribers.len()).unwrap_or(u32::MAX);
        let mut cursor = Cursor { view, at, seq: self.log.next_seq(), position: 0 };
        match start {
            Start::Now if self.channel.gives_snapshot() => cursor.leave(Since::Nothing),
            Start::Now => {}
            Start::After(position) => {
                self.log.prepend(self.channel.resume(position, self.log.oldest_seq())?);
                if let Some(chunk) = self.log.after(position.offset).next() {
                    cursor.enter(chunk.seq, chunk.position_after(position.offset));
                }
            }
        }
        self.subscribers.push(subscriber);
        self.channel.joined();
        Some(cursor)
    }

    /// What a client has whose cursor has just fallen off the log, the frame that it may be inside of included.
    pub fn had_by(&self, cursor: &Cursor) -> u64 {
        let chunk = self.gone.iter().chain(self.log.from(cursor.seq).take(1)).find(|chunk| chunk.seq == cursor.seq);
        // Without its chunk it stood at the end, and what came next was gone before it was here.
        let Some(chunk) = chunk else { return self.had };
        chunk.begun(cursor.position as usize).unwrap_or_else(|| chunk.first_offset().saturating_sub(1))
    }

    /// Takes a cursor out; the last subscriber takes its place.
    pub fn unsubscribe(&mut self, at: u32, rows: &mut Slab<Row>) {
        let index = at as usize;
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
            cursor.at = at;
        }
    }

    /// What is left to send of the frame a cursor is inside of; `None` if it is at a frame's start.
    pub fn rest_of_frame(&self, cursor: &Cursor) -> Option<(Arc<Chunk>, Range<usize>)> {
        let mut chunks = self.gone.iter().chain(self.log.from(cursor.seq).take(1));
        let chunk = chunks.find(|chunk| chunk.seq == cursor.seq)?;
        let rest = chunk.rest_of_frame(cursor.position as usize)?;
        Some((Arc::clone(chunk), rest))
    }
}
