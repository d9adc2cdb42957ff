//! The latest publication of every key of a channel.
//!
//! Ordered by offset, so that whoever has missed everything since some offset needs what stands behind it: the keys that
//! changed. Removed keys stay for those, up to a number; a new client is not told of them. Both orders are encoded when
//! first needed, and shared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use wire::{Entry, Epoch, Frame, Key};

use crate::channel::{Chunk, Publication};

/// What a key takes besides its name and its payload.
const OVERHEAD: usize = 160;
/// A key is there as it came, and encoded for new clients and for those that have missed something.
const COPIES: usize = 3;
/// Bytes of a snapshot, all copies together.
const MAX_BYTES: usize = 1 << 30;
/// What may follow an encoded snapshot before another is made, if the snapshot itself has fewer bytes.
const FRESH_BYTES: u64 = 64 << 10;

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
    /// For new clients and for those that have missed something.
    encoded: [Option<Encoded>; 2],
}

struct Encoded {
    chunk: Arc<Chunk>,
    /// Bytes that the channel had been given until then.
    at: u64,
}

/// Where a channel's log is.
#[derive(Clone, Copy)]
pub struct End {
    /// The next chunk's position.
    pub next: u64,
    /// Bytes of all chunks there ever were.
    pub bytes: u64,
    pub epoch: Epoch,
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

    /// Keys that are there stay, however many.
    pub fn set_max_keys(&mut self, max_keys: usize) {
        self.max_keys = max_keys;
    }

    /// Bytes of memory it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// What a publication would add to it, at most.
    pub fn cost(publication: &Publication) -> usize {
        let key = publication.key.as_ref();
        key.map_or(0, |key| cost(key, &publication.data))
    }

    /// Whether it has room for a burst even if every key of it is new. The usual case, told without looking at any key.
    pub fn has_room_for_all(&self, burst: &[Publication]) -> bool {
        let (keys, bytes) = burst.iter().fold((0, 0), |(keys, bytes), publication| {
            (keys + usize::from(publication.key.is_some()), bytes + Self::cost(publication))
        });
        keys == 0 || self.live() + keys <= self.max_keys && self.bytes + bytes <= MAX_BYTES
    }

    /// Keys that are not removed.
    fn live(&self) -> usize {
        self.offsets.len() - self.removals.len()
    }

    /// Which publications of a burst it has room for, each being applied before the next.
    pub fn admit(&self, burst: &[Publication]) -> Vec<bool> {
        let mut live = self.live();
        let mut bytes = self.bytes;
        // Keys of the burst: whether each is live now, and its bytes.
        let mut changed: HashMap<&str, (bool, usize)> = HashMap::new();
        let mut admitted = Vec::with_capacity(burst.len());
        for publication in burst {
            let Some(key) = &publication.key else {
                admitted.push(true);
                continue;
            };
            let known = || self.offsets.get(key).map(|offset| (!self.removals.contains(offset), self.cost_at(*offset)));
            let (was_live, before) = changed.get(&**key).copied().or_else(known).unwrap_or_default();
            let cost = cost(key, &publication.data);
            let has_room = was_live || publication.remove || live < self.max_keys;
            let fits = has_room && bytes + cost <= MAX_BYTES;
            if fits {
                live = live + usize::from(!publication.remove) - usize::from(was_live);
                bytes = bytes + cost - before;
                changed.insert(key, (!publication.remove, cost));
            }
            admitted.push(fits);
        }
        admitted
    }

    /// Takes in a publication that has its offset. Without a key there is nothing to take.
    pub fn apply(&mut self, Entry { offset, key: Key { name, remove }, data }: Entry) {
        let Some(key) = name else { return };
        if let Some(before) = self.offsets.insert(Arc::clone(&key), offset) {
            self.forget(before);
        }
        self.bytes += cost(&key, &data);
        self.latest.insert(offset, Latest { key, data });
        if remove {
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

    /// What stands behind an offset, oldest first; without removals.
    pub fn after(&self, offset: u64) -> impl Iterator<Item = (u64, &Arc<str>, &Frame)> {
        let behind = self.latest.range(offset.saturating_add(1)..);
        let live = behind.filter(|(offset, _)| !self.removals.contains(offset));
        live.map(|(offset, latest)| (*offset, &latest.key, &latest.data))
    }

    /// It as of now or of a moment ago, encoded: its chunk's `seq` is that of the chunk to go on with, `least` or later.
    /// `None`: something may have been forgotten that whoever asks has missed.
    pub fn chunk(&mut self, since: Since, end: End, least: u64) -> Option<Arc<Chunk>> {
        if let Since::Offset(offset) = since
            && offset < self.forgotten
        {
            return None;
        }
        // Without removals both are the same.
        let with_removals = !self.removals.is_empty() && since != Since::Nothing;
        // One that more follows than it has itself saves nobody anything.
        let good = |encoded: &&Encoded| {
            let follows = end.bytes - encoded.at;
            encoded.chunk.seq >= least && follows <= FRESH_BYTES.max(encoded.chunk.bytes() as u64)
        };
        if let Some(encoded) = self.encoded.get(usize::from(with_removals)).and_then(Option::as_ref).filter(good) {
            return Some(Arc::clone(&encoded.chunk));
        }
        let entries = self.latest.iter().filter(|(offset, _)| with_removals || !self.removals.contains(offset));
        let entries = entries.map(|(offset, latest)| {
            let key = Key { name: Some(Arc::clone(&latest.key)), remove: self.removals.contains(offset) };
            (*offset, key, &latest.data)
        });
        let chunk = Arc::new(Chunk::snapshot(end.next, end.epoch, entries));
        if let Some(place) = self.encoded.get_mut(usize::from(with_removals)) {
            *place = Some(Encoded { chunk: Arc::clone(&chunk), at: end.bytes });
        }
        Some(chunk)
    }

    /// Bytes that the latest publication of a key takes; `offset`: its offset.
    fn cost_at(&self, offset: u64) -> usize {
        self.latest.get(&offset).map_or(0, |latest| cost(&latest.key, &latest.data))
    }

    /// Takes out what is no longer a key's latest.
    fn forget(&mut self, offset: u64) -> Option<Latest> {
        let gone = self.latest.remove(&offset)?;
        self.removals.remove(&offset);
        self.bytes -= cost(&gone.key, &gone.data);
        Some(gone)
    }
}

/// Bytes that a key takes.
fn cost(key: &str, data: &Frame) -> usize {
    OVERHEAD + key.len() + COPIES * data.bytes.len()
}
