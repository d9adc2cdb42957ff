//! Parts of chunks that a row sends before its cursors go on.

use std::{ops::Range, sync::Arc};

use crate::channel::{Chunk, Format, Since};

/// Bytes to be sent to their end.
pub struct Rest {
    pub piece: Piece,
    pub range: Range<usize>,
}

/// Whose bytes these are.
pub enum Piece {
    Shared(Arc<Chunk>, Format),
    /// Copied out of a chunk, which need not stay for it.
    Own(Box<[u8]>),
}

impl Rest {
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.piece {
            // Made when it was known where this begins.
            Piece::Shared(chunk, format) => chunk.get_encoded(*format).map_or(&[][..], |chunk| chunk.bytes()),
            Piece::Own(bytes) => bytes,
        };
        bytes.get(self.range.clone()).unwrap_or_default()
    }

    /// Itself, its bytes copied.
    pub fn copied(&self) -> Self {
        let bytes: Box<[u8]> = self.bytes().into();
        Self { range: 0..bytes.len(), piece: Piece::Own(bytes) }
    }
}

/// A snapshot that one of the row's cursors follows.
pub struct Preface {
    /// That cursor's.
    pub view: u32,
    /// What the client had before.
    pub since: Since,
    pub chunk: Arc<Chunk>,
    /// The bytes of it that are to be sent.
    pub range: Range<usize>,
}

impl Preface {
    pub fn bytes(&self, format: Format) -> &[u8] {
        self.chunk.get_encoded(format).and_then(|chunk| chunk.bytes().get(self.range.clone())).unwrap_or_default()
    }
}
