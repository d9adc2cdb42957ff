//! The readers of a channel, which are notified of its new chunks. They live under the channel's lock.
//!
//! A reader that was notified is not notified again before it has read: however far it is behind, one notice waits for
//! it.
//!
//! `tests/loom` compiles this a second time, and tries every order in which threads can use it.

use std::sync::Arc;

/// A shard's queue, which a channel notifies of new chunks.
pub trait Reader: Send + Sync {
    /// Notes that there are new chunks. The channel is locked meanwhile, so this must not wait. `token` is the one that
    /// the reader was attached with.
    fn new_chunks(&self, token: usize);
}

#[derive(Default)]
pub struct Readers(Vec<Attached>);

struct Attached {
    reader: Arc<dyn Reader>,
    token: usize,
    /// The position of the first new chunk, if the reader was notified and has not read yet.
    notified_from: Option<u64>,
}

impl Readers {
    pub fn attach(&mut self, reader: Arc<dyn Reader>, token: usize) {
        self.0.push(Attached { reader, token, notified_from: None });
    }

    pub fn detach(&mut self, reader: &Arc<dyn Reader>) {
        self.0.retain(|attached| !Arc::ptr_eq(&attached.reader, reader));
    }

    /// The first position that a reader was notified of and has not read yet.
    pub fn unread(&self) -> Option<u64> {
        self.0.iter().filter_map(|attached| attached.notified_from).min()
    }

    /// Notifies the readers of new chunks, from a position on.
    pub fn notify(&mut self, newest: u64) {
        for attached in self.0.iter_mut().filter(|attached| attached.notified_from.is_none()) {
            attached.notified_from = Some(newest);
            attached.reader.new_chunks(attached.token);
        }
    }

    /// Notes that a reader takes all chunks there are.
    pub fn caught_up(&mut self, reader: &Arc<dyn Reader>) {
        if let Some(attached) = self.0.iter_mut().find(|attached| Arc::ptr_eq(&attached.reader, reader)) {
            attached.notified_from = None;
        }
    }
}
