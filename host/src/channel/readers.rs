//! Who is told of a channel's new chunks. Lives under the channel's lock.
//!
//! A reader that has been told is not told again before it has come: however far it is behind, one word waits for it.
//!
//! Compiled a second time by `tests/loom`, which tries every order of what threads do with it.

use std::sync::Arc;

/// Whom a channel tells of new chunks: a shard's queue. Called with the channel locked: it must not wait.
pub trait Reader: Send + Sync {
    /// `token` is what the reader gave when it was attached.
    fn fresh(&self, token: usize);
}

#[derive(Default)]
pub struct Readers(Vec<Attached>);

struct Attached {
    reader: Arc<dyn Reader>,
    token: usize,
    /// Told of new chunks, from this position on, and not yet come for them.
    told: Option<u64>,
}

impl Readers {
    pub fn attach(&mut self, reader: Arc<dyn Reader>, token: usize) {
        self.0.push(Attached { reader, token, told: None });
    }

    pub fn detach(&mut self, reader: &Arc<dyn Reader>) {
        self.0.retain(|attached| !Arc::ptr_eq(&attached.reader, reader));
    }

    /// The first position that somebody was told of and has not come for.
    pub fn unread(&self) -> Option<u64> {
        self.0.iter().filter_map(|attached| attached.told).min()
    }

    /// There are new chunks from a position on.
    pub fn tell(&mut self, newest: u64) {
        for attached in self.0.iter_mut().filter(|attached| attached.told.is_none()) {
            attached.told = Some(newest);
            attached.reader.fresh(attached.token);
        }
    }

    /// A reader has come, and takes all there is.
    pub fn came(&mut self, reader: &Arc<dyn Reader>) {
        if let Some(attached) = self.0.iter_mut().find(|attached| Arc::ptr_eq(&attached.reader, reader)) {
            attached.told = None;
        }
    }
}
