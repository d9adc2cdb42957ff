//! Messages and publications as plain values.

use std::sync::Arc;

use bytes::Bytes;

use crate::Position;

/// A WebSocket message: its type and its bytes. The bytes of a text are UTF-8: whoever makes one has checked.
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

/// What a publication is the latest of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub name: Option<Arc<str>>,
    /// The publication says that the key is no more.
    pub remove: bool,
}

/// One publication, read back from a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub key: Key,
    pub data: Frame,
}

/// A part of what was published on a channel.
#[derive(Debug)]
pub struct Page {
    /// The position of the newest publication.
    pub position: Position,
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// For a page behind a position: whether nothing is missing between that position and the first entry.
    pub recovered: Option<bool>,
}
