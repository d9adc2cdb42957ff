//! Messages and publications as plain values.

use std::sync::Arc;

use bytes::Bytes;

use crate::Position;

/// A WebSocket message: its type and its bytes. The bytes of a text are UTF-8; the code that makes one checks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub bytes: Bytes,
}

/// The type of a WebSocket message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
}

/// A publication's key. A channel's snapshot has the newest publication of each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub name: Option<Arc<str>>,
    /// Whether the publication removes the key.
    pub remove: bool,
}

/// One publication, read back from a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub key: Key,
    pub data: Frame,
}

/// Bytes that a page's entry takes besides its payload: offset, key, and the names of the fields.
const AROUND: usize = 64;

/// A part of a channel's history.
#[derive(Debug)]
pub struct Page {
    /// The position of the channel's newest publication.
    pub position: Position,
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// For a page next to a position: whether nothing is missing between the position and the page. `None` for others.
    pub recovered: Option<bool>,
}

impl Page {
    /// Bytes of all payloads, and roughly of what is written around them.
    pub fn size(&self) -> usize {
        self.entries.iter().map(|entry| entry.data.bytes.len() + AROUND).sum()
    }
}
