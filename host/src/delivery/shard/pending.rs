//! Parts of chunks that a row sends before its cursors go on.

use std::{ops::Range, sync::Arc};

use crate::channel::{Chunk, Format, Since};

/// What is left of a frame, to be sent to its end.
pub struct Rest {
    pub piece: Piece,
    pub range: Range<usize>,
}

/// Where the bytes are.
pub enum Piece {
    Shared(Arc<Chunk>, Format),
    /// Copied, so that the chunk need not stay for them.
    Own(Box<[u8]>),
}

impl Rest {
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.piece {
            // This format exists already: it was needed to find `range`.
            Piece::Shared(chunk, format) => chunk.get_encoded(*format).map_or(&[][..], |chunk| chunk.bytes()),
            Piece::Own(bytes) => bytes,
        };
        bytes.get(self.range.clone()).unwrap_or_default()
    }

    /// Bytes that it has for itself.
    pub fn size(&self) -> usize {
        match &self.piece {
            Piece::Shared(..) => 0,
            Piece::Own(bytes) => bytes.len(),
        }
    }

    /// The same, with its bytes copied.
    pub fn copied(&self) -> Self {
        let bytes: Box<[u8]> = self.bytes().into();
        Self { range: 0..bytes.len(), piece: Piece::Own(bytes) }
    }
}

/// A snapshot that is sent before one of the row's cursors goes on.
pub struct Preface {
    /// The view of that cursor.
    pub view: u32,
    /// What the client had before the snapshot.
    pub since: Since,
    pub chunk: Arc<Chunk>,
    /// The bytes of the chunk that are yet to be sent.
    pub range: Range<usize>,
}

impl Preface {
    pub fn bytes(&self, format: Format) -> &[u8] {
        self.chunk.get_encoded(format).and_then(|chunk| chunk.bytes().get(self.range.clone())).unwrap_or_default()
    }
}
