//! The latest publication of every key of a channel.
//!
//! Ordered by offset, so that whoever has missed everything since some offset needs what stands behind it: the keys that
//! changed. Removed keys stay for those, up to a number; a new client is not told of them. Both orders are encoded when
//! first needed, and shared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Chunk, Frame, Publication, chunk::Key};

/// What a key takes besides its name and its payload.
const OVERHEAD: usize = 160;

/// Who reads a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A client that has nothing.
    Nothing,
    /// One that has missed what came after this offset.
    Offset(u64),
}

pub struct Snapshot {
    latest: BTreeMap<u64, Latest>,
    offsets: HashMap<Arc<str>, u64>,
    /// Offsets of those that are removals.
    removals: BTreeSet<u64>,
    max_keys: usize,
    bytes: usize,
    /// What was removed up to here may be forgotten.
    forgotten: u64,
    /// Encoded, for new clients and for those that have missed something.
    encoded: [Option<Arc<Chunk>>; 2],
}

struct Latest {
    key: Arc<str>,
    data: Frame,
}

impl Snapshot {
    pub fn new(max_keys: usize) -> Self {
        Self {
            latest: BTreeMap::new(),
            offsets: HashMap::new(),
            removals: BTreeSet::new(),
            max_keys,
            bytes: 0,
            forgotten: 0,
            encoded: [None, None],
        }
    }

    /// Bytes of memory it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes + self.encoded.iter().flatten().map(|chunk| chunk.size()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// What a publication would add to it, at most.
    pub fn cost(publication: &Publication) -> usize {
        let key = publication.key.as_ref();
        key.map_or(0, |key| OVERHEAD + key.len() + publication.data.bytes.len())
    }

    /// Whether there is room for a publication's key.
    pub fn takes(&self, publication: &Publication) -> bool {
        let Some(key) = &publication.key else { return true };
        let there = self.offsets.get(key).is_some_and(|offset| !self.removals.contains(offset));
        there || publication.remove || self.offsets.len() - self.removals.len() < self.max_keys
    }

    /// Takes in a publication that has just got its offset.
    pub fn apply(&mut self, offset: u64, publication: &Publication) {
        let Some(key) = &publication.key else { return };
        if let Some(before) = self.offsets.insert(Arc::clone(key), offset) {
            self.forget(before);
        }
        self.bytes += Self::cost(publication);
        self.latest.insert(offset, Latest { key: Arc::clone(key), data: publication.data.clone() });
        if publication.remove {
            self.removals.insert(offset);
            if self.removals.len() > self.max_keys
                && let Some(oldest) = self.removals.first().copied()
            {
                if let Some(latest) = self.forget(oldest) {
                    self.offsets.remove(&latest.key);
                }
                self.forgotten = oldest;
            }
        }
    }

    /// Continuity is lost: nothing of before `next` says anything about what follows.
    pub fn clear(&mut self, next: u64) {
        *self = Self { forgotten: next.saturating_sub(1), ..Self::new(self.max_keys) };
    }

    /// The whole of it, oldest first; without removals.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Arc<str>, &Frame)> {
        let live = self.latest.iter().filter(|(offset, _)| !self.removals.contains(offset));
        live.map(|(offset, latest)| (*offset, &latest.key, &latest.data))
    }

    /// It as of now or of some time before, encoded: its chunk's `seq` is that of the chunk to go on with, `least` or
    /// later; `next` now. `None`: something may have been forgotten that whoever asks has missed.
    pub fn chunk(&mut self, since: Since, next: u64, least: u64) -> Option<Arc<Chunk>> {
        if let Since::Offset(offset) = since
            && offset < self.forgotten
        {
            return None;
        }
        // Without removals both are the same.
        let with_removals = !self.removals.is_empty() && since != Since::Nothing;
        if let Some(chunk) = self.encoded.get(usize::from(with_removals)).and_then(Option::as_ref)
            && chunk.seq >= least
        {
            return Some(Arc::clone(chunk));
        }
        let entries = self.latest.iter().filter(|(offset, _)| with_removals || !self.removals.contains(offset));
        let entries = entries.map(|(offset, latest)| {
            let key = Key { name: Some(Arc::clone(&latest.key)), remove: self.removals.contains(offset) };
            (*offset, key, &latest.data)
        });
        let chunk = Arc::new(Chunk::snapshot(next, entries));
        if let Some(place) = self.encoded.get_mut(usize::from(with_removals)) {
            *place = Some(Arc::clone(&chunk));
        }
        Some(chunk)
    }

    /// Takes out what is no longer a key's latest.
    fn forget(&mut self, offset: u64) -> Option<Latest> {
        let gone = self.latest.remove(&offset)?;
        self.removals.remove(&offset);
        self.bytes -= OVERHEAD + gone.key.len() + gone.data.bytes.len();
        Some(gone)
    }
}
