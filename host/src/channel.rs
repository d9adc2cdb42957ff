//! Channels: named streams inside a tenant.
//!
//! In come publications, through [`Channels::publish`] whoever produced them; they are encoded once into a [`Chunk`],
//! kept in the channel's [`Log`], and every shard that has subscribers is told. Nothing here waits for a client: shards
//! take references to the chunks when they come to it, and what bounds memory is the log's size.
//!
//! A client that resumes, one that has fallen off the log and whoever reads over HTTP ask the [`Channel`] for what they
//! have missed. Offsets are of an [`Epoch`]: a new one begins whenever something may be missing before what follows.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use config::{ChannelRule, Slow};
use wire::{Epoch, Frame, Position};

use crate::{demand::Demand, metrics::TenantMetrics, sync::Mutex};

mod channels;
mod chunk;
mod encoding;
mod history;
mod log;
mod publication;
mod readers;
mod resume;
mod snapshot;

pub use crate::channel::{
    channels::Channels,
    chunk::Chunk,
    encoding::Format,
    history::Start,
    log::Log,
    publication::{Publication, Refused, check_name},
    readers::Reader,
    resume::{Resumed, resume},
    snapshot::Since,
};
use crate::channel::{readers::Readers, snapshot::Snapshot};

/// The channel of clients that ask for none, and of upstreams without a filter.
pub const MAIN: &str = "main";
/// How far a log may exceed its bytes while a shard that was told of chunks has not come for them.
const MAX_UNREAD: usize = 16 << 20;
/// Burst bytes after which a new chunk begins: a chunk leaves the log whole, so it stays small beside it.
const CHUNK_BYTES: usize = 256 << 10;

/// One channel: its log, its snapshot and the shards that read it.
pub struct Channel {
    pub name: Arc<str>,
    pub metrics: Arc<TenantMetrics>,
    /// Replaced when the manifest changes, as are the two below.
    rule: ArcSwap<ChannelRule>,
    /// Payloads of so many bytes and more are compressed for clients that can take it.
    compress_above: AtomicUsize,
    /// Clients that follow it now, in all shards.
    subscribers: AtomicUsize,
    demand: Arc<Demand>,
    /// Bytes of all the tenant's logs and snapshots, now and at most.
    total: Arc<AtomicUsize>,
    /// Bytes of its chunks in the formats that were made later.
    encoded_bytes: Arc<AtomicUsize>,
    max_total: Arc<AtomicUsize>,
    state: Mutex<ChannelState>,
}

struct ChannelState {
    log: Log,
    snapshot: Snapshot,
    next_offset: u64,
    /// Of all chunks there ever were.
    bytes: u64,
    epoch: Epoch,
    /// The first offset of the epoch.
    begins: u64,
    /// Upstreams whose publications it has had.
    upstreams: Vec<Arc<str>>,
    readers: Readers,
}

/// An epoch that never was before.
fn new_epoch() -> Epoch {
    Epoch(rand::random())
}

impl ChannelState {
    fn new(rule: &ChannelRule) -> Self {
        Self {
            log: Log::new(rule.log_bytes),
            snapshot: Snapshot::new(rule.max_keys),
            next_offset: 1,
            bytes: 0,
            epoch: new_epoch(),
            begins: 1,
            upstreams: Vec::new(),
            readers: Readers::default(),
        }
    }
}

impl Channel {
    /// Appends a burst whole, then tells the readers. Returns how many had no room for their keys, and are left out.
    fn append(&self, mut burst: Vec<Publication>, upstream: Option<&Arc<str>>) -> usize {
        let mut state = self.state.lock();
        let state = &mut *state;
        let snapshot = state.snapshot.bytes();
        let mut offset = state.next_offset;
        let count = burst.len();
        burst.retain(|publication| {
            let takes = state.snapshot.takes(publication);
            if takes {
                state.snapshot.apply(offset, publication);
                offset += 1;
            }
            takes
        });
        self.resized(snapshot, state.snapshot.bytes());
        if let Some(upstream) = upstream
            && !state.upstreams.contains(upstream)
        {
            state.upstreams.push(Arc::clone(upstream));
        }
        let newest = state.log.next_seq();
        // A burst stays whole until its readers have come for it, however small the log: they may be fast.
        let unread = state.readers.unread().unwrap_or(newest);
        let limit = chunk_limit(self.log_limit());
        let mut rest = burst.as_slice();
        while !rest.is_empty() {
            let first = Position { epoch: state.epoch, offset: state.next_offset };
            let (chunk, encoded) = Chunk::encode(state.log.next_seq(), first, rest, limit);
            rest = rest.get(encoded..).unwrap_or_default();
            state.next_offset += encoded as u64;
            self.total.fetch_add(chunk.size(), Ordering::Relaxed);
            state.bytes += chunk.bytes() as u64;
            state.log.push(Arc::new(chunk), unread, |gone| self.forget(&gone));
        }
        while state.log.excess() > MAX_UNREAD {
            let Some(gone) = state.log.pop_before(newest) else { break };
            self.forget(&gone);
        }
        while self.total.load(Ordering::Relaxed) > self.max_total.load(Ordering::Relaxed) {
            let Some(gone) = state.log.pop_before(newest) else { break };
            self.forget(&gone);
        }
        if !burst.is_empty() {
            state.readers.tell(newest);
        }
        count - burst.len()
    }

    fn forget(&self, gone: &Chunk) {
        gone.forget();
        self.total.fetch_sub(gone.size(), Ordering::Relaxed);
    }

    /// The snapshot's bytes are others now.
    fn resized(&self, before: usize, now: usize) {
        if now > before {
            self.total.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Adds a reader, which is told of every chunk from now on; returns a log without the older ones, and the position
    /// that they end with.
    pub fn attach(&self, reader: Arc<dyn Reader>, token: usize) -> (Log, Position) {
        let mut state = self.state.lock();
        state.readers.attach(reader, token);
        (state.log.from_here(), state.position())
    }

    /// Hands over the chunks from position `seq` on that the log still has; returns the oldest one's position.
    pub fn read(&self, reader: &Arc<dyn Reader>, seq: u64, mut take: impl FnMut(&Arc<Chunk>)) -> u64 {
        let mut state = self.state.lock();
        state.readers.came(reader);
        state.log.from(seq).for_each(&mut take);
        state.log.oldest_seq()
    }

    pub fn detach(&self, reader: &Arc<dyn Reader>) {
        self.state.lock().readers.detach(reader);
    }

    /// The newest publication, if the log has one.
    pub fn latest(&self) -> Option<Frame> {
        self.state.lock().log.from(0).rev().find_map(|chunk| chunk.last())
    }

    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// A shard has one subscriber more.
    pub fn joined(&self) {
        if self.subscribers.fetch_add(1, Ordering::Relaxed) == 0 {
            self.demand.channel_active(&self.name);
        }
    }

    /// A shard has one subscriber less.
    pub fn left(&self) {
        if self.subscribers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.demand.channel_idle(&self.name);
        }
    }

    /// What happens to a client that has fallen off the log.
    pub fn slow(&self) -> Slow {
        let keyed = || !self.state.lock().snapshot.is_empty();
        self.rule.load().slow.unwrap_or_else(|| if keyed() { Slow::Conflate } else { Slow::Close })
    }

    /// Whether it must not make room for others while nobody follows it: what it has would be missed.
    fn is_kept(&self) -> bool {
        let state = self.state.lock();
        state.next_offset > 1 && (self.rule.load().history.kept || !state.snapshot.is_empty())
    }

    /// Lets go of an eighth of the log, but for the newest chunk; false: there is no other.
    fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        let newest = state.log.next_seq().saturating_sub(1);
        let enough = state.log.bytes() - state.log.bytes() / 8;
        let mut gave = false;
        while state.log.bytes() > enough
            && let Some(gone) = state.log.pop_before(newest)
        {
            self.forget(&gone);
            gave = true;
        }
        gave
    }

    /// Follows another rule from now on: what is over its bytes goes with the next publication.
    fn reconfigure(&self, rule: ChannelRule, compress_above: usize) {
        let mut state = self.state.lock();
        state.log.set_max_bytes(rule.log_bytes);
        state.snapshot.set_max_keys(rule.max_keys);
        self.compress_above.store(compress_above, Ordering::Relaxed);
        self.rule.store(Arc::new(rule));
    }

    /// Bytes that its log keeps.
    pub fn log_limit(&self) -> usize {
        self.rule.load().log_bytes
    }

    /// Bytes of its log, in all formats.
    fn log_bytes(&self) -> usize {
        self.state.lock().log.bytes() + self.encoded_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let state = self.state.lock();
        state.log.from(0).for_each(|chunk| self.forget(chunk));
        self.resized(state.snapshot.bytes(), 0);
    }
}

/// Where a chunk ends: small beside its log, which lets go of chunks whole.
fn chunk_limit(log_bytes: usize) -> usize {
    CHUNK_BYTES.min(log_bytes / 8)
}
