//! The latest publication of every key of a channel.
//!
//! It is ordered by offset. A client that has missed everything after some offset needs the part after it: the keys
//! that changed. For such clients some removed keys stay, up to a number; a new client does not get them. The snapshot
//! is encoded with and without removals, each when it is first needed, and shared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use wire::{Entry, Epoch, Frame, Key};

use crate::channel::{Chunk, Publication, ledger::LogLedger};

/// Bytes that a key takes besides its name and its payload.
const OVERHEAD: usize = 160;
/// How often a payload is in memory: as it came, encoded for new clients, and encoded for clients that missed
/// something.
const COPIES: usize = 3;
/// Most bytes of a snapshot, with all copies.
const MAX_BYTES: usize = 1 << 30;
/// Bytes by which the log may grow before the snapshot is encoded again, or as many as the snapshot has, if that is
/// more.
const FRESH_BYTES: u64 = 64 << 10;

/// Bytes of a snapshot, as [`Snapshot::bytes`] counts them, up to which it is encoded at once.
const SMALL: usize = 256 << 10;
/// Keys that are looked at at a time when a larger one is made.
const PART: usize = 1000;

/// A latest publication with its offset, for itself.
pub type Owned = (u64, Key, Frame);

/// A snapshot, as far as it is there.
pub enum SnapshotNow {
    Ready(Arc<Chunk>),
    /// It has to be made first.
    ToMake,
    /// What the reader has missed is not known any more.
    Unknown,
}

/// Time for which a large snapshot is fresh in any case.
const FRESH_TIME: Duration = Duration::from_secs(5);

/// What the reader of a snapshot has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing: it is a new client.
    Nothing,
    /// Everything up to this offset.
    Offset(u64),
}

pub struct Snapshot {
    /// The latest publications, by offset.
    latest: BTreeMap<u64, Latest>,
    /// The offset of each key's latest publication.
    offsets: HashMap<Arc<str>, u64>,
    /// The offsets at which the latest publication is a removal.
    removals: BTreeSet<u64>,
    max_keys: usize,
    bytes: usize,
    /// The offset up to which removals may have been forgotten.
    forgotten: u64,
    /// Encoded without removals, and with them.
    encoded: [Option<EncodedSnapshot>; 2],
}

pub struct EncodedSnapshot {
    chunk: Arc<Chunk>,
    /// The channel's [`LogEnd::bytes`] when it was encoded.
    log_bytes: u64,
}

/// Clients may hold an older one for a while.
impl Drop for EncodedSnapshot {
    fn drop(&mut self) {
        self.chunk.forget();
    }
}

/// Where a channel's log ends.
#[derive(Clone, Copy)]
pub struct LogEnd {
    /// The next chunk's position.
    pub next: u64,
    /// The next publication's offset.
    pub next_offset: u64,
    /// Bytes of all chunks that the channel has ever had.
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

    /// Sets how many keys it may have. It keeps the keys it has, even if there are more.
    pub fn set_max_keys(&mut self, max_keys: usize) {
        self.max_keys = max_keys;
    }

    /// Bytes of memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// Most bytes that a publication would add to it.
    pub fn cost(publication: &Publication) -> usize {
        let key = publication.key.as_ref();
        key.map_or(0, |key| cost(key, &publication.data))
    }

    /// Whether it has room for a burst even if all its keys are new. This is the usual case, and needs no look at the
    /// keys.
    pub fn has_room_for_all(&self, burst: &[Publication]) -> bool {
        let (keys, bytes) = burst.iter().fold((0, 0), |(keys, bytes), publication| {
            (keys + usize::from(publication.key.is_some()), bytes + Self::cost(publication))
        });
        keys == 0 || self.live() + keys <= self.max_keys && self.bytes + bytes <= MAX_BYTES
    }

    /// How many keys it has, without removed ones.
    fn live(&self) -> usize {
        self.offsets.len() - self.removals.len()
    }

    /// Which publications of a burst it has room for, if each is applied before the next.
    pub fn admit(&self, burst: &[Publication]) -> Vec<bool> {
        let mut live = self.live();
        let mut bytes = self.bytes;
        // For each key of the burst: whether it is live now, and its bytes.
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

    /// Applies a publication that has its offset. One without a key changes nothing.
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

    /// Forgets everything before the offset `next`, because continuity is lost there.
    pub fn clear(&mut self, next: u64) {
        *self = Self { forgotten: next.saturating_sub(1), ..Self::new(self.max_keys) };
    }

    /// The latest publications after an offset, oldest first, without removals.
    pub fn after(&self, offset: u64) -> impl Iterator<Item = (u64, &Arc<str>, &Frame)> {
        let behind = self.latest.range(offset.saturating_add(1)..);
        let live = behind.filter(|(offset, _)| !self.removals.contains(offset));
        live.map(|(offset, latest)| (*offset, &latest.key, &latest.data))
    }

    /// The snapshot of this moment or of a little earlier, encoded. The chunk's `seq` is the position at which a reader
    /// goes on in the log. It is `min_seq` or later. It is unknown if a removal that the reader has missed may have
    /// been forgotten.
    pub fn chunk(&mut self, since: Since, end: LogEnd, min_seq: u64, ledger: &Arc<LogLedger>) -> SnapshotNow {
        if let Since::Offset(offset) = since
            && offset < self.forgotten
        {
            return SnapshotNow::Unknown;
        }
        let with_removals = self.has_removals_for(since);
        // If the log has grown by more bytes than the snapshot has, a fresh snapshot saves the client bytes. But one
        // that takes long to make must not be too old when it is there.
        let good = |encoded: &&EncodedSnapshot| {
            let follows = end.bytes - encoded.log_bytes;
            let is_new = self.bytes > SMALL && encoded.chunk.at.elapsed() < FRESH_TIME;
            encoded.chunk.seq >= min_seq && (is_new || follows <= FRESH_BYTES.max(encoded.chunk.bytes() as u64))
        };
        if let Some(encoded) = self.encoded.get(usize::from(with_removals)).and_then(Option::as_ref).filter(good) {
            return SnapshotNow::Ready(Arc::clone(&encoded.chunk));
        }
        if self.bytes > SMALL {
            return SnapshotNow::ToMake;
        }
        let entries = self.latest.iter().filter(|(offset, _)| with_removals || !self.removals.contains(offset));
        let entries = entries.map(|(offset, latest)| {
            let key = Key { name: Some(Arc::clone(&latest.key)), remove: self.removals.contains(offset) };
            (*offset, key, &latest.data)
        });
        let chunk = Arc::new(Chunk::snapshot(end.next, end.epoch, entries, ledger));
        self.keep(with_removals, Arc::clone(&chunk), end);
        SnapshotNow::Ready(chunk)
    }

    /// Whether a reader needs the removals. If there are none, the encodings with and without are the same.
    pub fn has_removals_for(&self, since: Since) -> bool {
        !self.removals.is_empty() && since != Since::Nothing
    }

    /// Some of the latest publications after an offset, and the offset after which to go on. `None`: there are no more.
    pub fn part(&self, after: u64, with_removals: bool) -> Option<(u64, Vec<Owned>)> {
        let looked_at = || self.latest.range(after.saturating_add(1)..).take(PART);
        let (last, _) = looked_at().last()?;
        let entry = |(offset, latest): (&u64, &Latest)| {
            let remove = self.removals.contains(offset);
            let key = Key { name: Some(Arc::clone(&latest.key)), remove };
            (with_removals || !remove).then(|| (*offset, key, latest.data.clone()))
        };
        Some((*last, looked_at().filter_map(entry).collect()))
    }

    /// Keeps an encoding for the next readers. Returns the one before.
    pub fn keep(&mut self, with_removals: bool, chunk: Arc<Chunk>, end: LogEnd) -> Option<EncodedSnapshot> {
        let place = self.encoded.get_mut(usize::from(with_removals))?;
        place.replace(EncodedSnapshot { chunk, log_bytes: end.bytes })
    }

    /// Bytes that the latest publication at an offset takes.
    fn cost_at(&self, offset: u64) -> usize {
        self.latest.get(&offset).map_or(0, |latest| cost(&latest.key, &latest.data))
    }

    /// Takes out a publication that is no longer the latest of its key.
    fn forget(&mut self, offset: u64) -> Option<Latest> {
        let gone = self.latest.remove(&offset)?;
        self.removals.remove(&offset);
        self.bytes -= cost(&gone.key, &gone.data);
        Some(gone)
    }
}

/// Bytes that a key takes, with its latest publication.
fn cost(key: &str, data: &Frame) -> usize {
    OVERHEAD + key.len() + COPIES * data.bytes.len()
}
