//! Where a client is in the channels that it follows.

use std::slice;

use crate::{
    channel::{Format, Since},
    delivery::shard::view::View,
};

/// A position in a channel's log.
pub struct Cursor {
    /// The shard's view of the channel.
    pub view: u32,
    /// Its index among the view's subscribers.
    pub subscriber_index: u32,
    /// The chunk's position in the log. If the cursor is off the log: the offset of the last publication that its
    /// client has.
    pub seq: u64,
    /// The byte in the chunk, or [`OFF`] or [`OFF_ALL`].
    pub position: u32,
    /// Whether the tenant's code gave the channel. If not, the client asked for it.
    pub given_by_tenant: bool,
}

/// In the place of a byte: the cursor is off the log. Before it goes on, the client gets what it has missed of the
/// snapshot, or with [`OFF_ALL`] all of it.
const OFF: u32 = u32::MAX;
const OFF_ALL: u32 = u32::MAX - 1;

impl Cursor {
    /// What the client has, if the cursor is off the log.
    pub fn since(&self) -> Option<Since> {
        match self.position {
            OFF => Some(Since::Offset(self.seq)),
            OFF_ALL => Some(Since::Nothing),
            _ => None,
        }
    }

    /// Takes the cursor off the log. How it goes on depends on what its client has by then.
    pub fn leave(&mut self, since: Since) {
        (self.seq, self.position) = match since {
            Since::Offset(offset) => (offset, OFF),
            Since::Nothing => (0, OFF_ALL),
        };
    }

    /// Puts the cursor at a byte of a chunk where a frame begins.
    pub fn enter(&mut self, seq: u64, position: usize) {
        self.seq = seq;
        // A chunk is far below 4 GiB.
        self.position = u32::try_from(position).unwrap_or(0);
    }

    /// Moves on by the bytes that were written, and past a chunk that has none.
    pub fn step(&mut self, written: usize, view: &View, format: Format, delivered: &mut u64) {
        let mut left = written;
        for chunk in view.log.from(self.seq) {
            let chunk = chunk.encoded(format, &view.channel);
            let (from, end) = (self.position as usize, chunk.bytes().len());
            let to = end.min(from + left);
            *delivered += chunk.completed(from, to) as u64;
            left -= to - from;
            if to < end {
                // A chunk is far below 4 GiB.
                self.position = u32::try_from(to).unwrap_or(u32::MAX);
                return;
            }
            self.seq += 1;
            self.position = 0;
            if left == 0 {
                return;
            }
        }
    }
}

/// A row's cursors. There is nearly always one, which is kept in place.
pub enum Cursors {
    One(Cursor),
    Many(Box<[Cursor]>),
}

impl Cursors {
    pub fn none() -> Self {
        Self::Many(Box::default())
    }

    pub fn as_slice(&self) -> &[Cursor] {
        match self {
            Self::One(cursor) => slice::from_ref(cursor),
            Self::Many(cursors) => cursors,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Cursor] {
        match self {
            Self::One(cursor) => slice::from_mut(cursor),
            Self::Many(cursors) => cursors,
        }
    }

    /// Adds a cursor behind the others.
    pub fn push(&mut self, cursor: Cursor) {
        let mut cursors = self.take_all();
        cursors.push(cursor);
        *self = Self::from(cursors);
    }

    /// Takes a cursor out. The last one takes its place.
    pub fn take(&mut self, nth: usize) -> Option<Cursor> {
        let mut cursors = self.take_all();
        let taken = (nth < cursors.len()).then(|| cursors.swap_remove(nth));
        *self = Self::from(cursors);
        taken
    }

    fn take_all(&mut self) -> Vec<Cursor> {
        match std::mem::replace(self, Self::none()) {
            Self::One(cursor) => vec![cursor],
            Self::Many(cursors) => cursors.into(),
        }
    }
}

impl From<Vec<Cursor>> for Cursors {
    fn from(cursors: Vec<Cursor>) -> Self {
        match <[_; 1]>::try_from(cursors) {
            Ok([one]) => Self::One(one),
            Err(many) => Self::Many(many.into()),
        }
    }
}
