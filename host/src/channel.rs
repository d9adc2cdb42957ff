//! Channels: named streams inside a tenant.
//!
//! Every publication goes through [`Channels::publish`], from every producer. It is encoded once into a [`Chunk`],
//! which the channel's [`Log`] keeps. Then each shard that has subscribers is notified. Nothing here waits for a
//! client: shards take references to the chunks when they get to it, and the log's size bounds the memory.
//!
//! The [`Channel`] also has what a client has missed: for one that resumes, for one that has fallen off the log, and
//! for requests over HTTP. Offsets belong to an [`Epoch`]. A new epoch begins whenever publications may be missing
//! before the next one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use config::{ChannelRule, Slow};
use wire::{Epoch, Frame, Position};

use crate::{
    account::{Account, Part},
    demand::Demand,
    metrics::TenantMetrics,
    sync::Mutex,
};

mod channels;
mod chunk;
mod encoding;
mod history;
mod ledger;
mod log;
mod publication;
mod readers;
mod resume;
mod sequence;
mod sizes;
mod snapshot;
#[cfg(test)]
pub mod tests;

pub use crate::channel::{
    channels::Channels,
    chunk::Chunk,
    encoding::Format,
    history::Start,
    log::Log,
    publication::{Publication, Refused, check_name},
    readers::Reader,
    resume::{Resumed, resume},
    snapshot::{Since, SnapshotNow},
};
use crate::channel::{
    ledger::LogLedger,
    readers::Readers,
    sequence::{Sequenced, Sequencer, new_epoch},
    snapshot::{LogEnd, Snapshot},
};

/// The channel of clients that ask for none, and of upstreams without a filter.
pub const MAIN: &str = "main";
/// Bytes by which a log may exceed its limit while a notified shard has not read the chunks yet.
const MAX_UNREAD: usize = 16 << 20;
/// Bytes of a burst after which a new chunk begins. A chunk leaves the log whole, so it must be small beside the log.
const CHUNK_BYTES: usize = 64 << 10;

/// One channel: its log, its snapshot and the shards that read it.
pub struct Channel {
    pub name: Arc<str>,
    pub metrics: Arc<TenantMetrics>,
    /// What the manifest says of it. Replaced when the manifest changes, as `compress_above` is.
    rule: ArcSwap<ChannelRule>,
    /// Payloads from this many bytes on are compressed, for clients that accept compression.
    compress_above: AtomicUsize,
    /// How many clients follow it now, in all shards.
    subscribers: AtomicUsize,
    demand: Arc<Demand>,
    /// Counts its chunks' bytes, in all formats, on the tenant's account.
    ledger: Arc<LogLedger>,
    state: Mutex<ChannelState>,
}

/// What a channel stores and serves. Lives under the channel's lock.
struct ChannelState {
    log: Log,
    snapshot: Snapshot,
    /// The offset after that of the last publication applied.
    next_offset: u64,
    /// Bytes of all chunks that it has ever had.
    bytes: u64,
    epoch: Epoch,
    /// The first offset of the epoch.
    epoch_start: u64,
    readers: Readers,
    /// Gives the publications their positions.
    sequencer: Sequencer,
}

impl ChannelState {
    fn new(rule: &ChannelRule) -> Self {
        let first = Position { epoch: new_epoch(), offset: 1 };
        Self {
            log: Log::new(rule.log_bytes),
            snapshot: Snapshot::new(rule.max_keys),
            next_offset: first.offset,
            bytes: 0,
            epoch: first.epoch,
            epoch_start: first.offset,
            readers: Readers::default(),
            sequencer: Sequencer::new(first),
        }
    }

    /// Where it ends now.
    fn end(&self) -> LogEnd {
        LogEnd { next: self.log.next_seq(), next_offset: self.next_offset, bytes: self.bytes, epoch: self.epoch }
    }

    /// The position from which on the log keeps all chunks when it gets the chunk at position `newest`.
    ///
    /// A burst stays whole until its readers have read it, even in a small log: they may be fast.
    fn keep(&self, newest: u64) -> u64 {
        self.readers.unread().unwrap_or(newest)
    }
}

impl Channel {
    /// Appends a whole burst, then notifies the readers. Returns how many publications were left out because the
    /// snapshot has no room for their keys.
    fn append(&self, burst: Vec<Publication>, upstream: Option<&Arc<str>>) -> usize {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Sequenced { first, publications, left_out } = state.sequencer.sequence(burst, upstream, &state.snapshot);
        if publications.is_empty() {
            return left_out;
        }
        let newest = state.log.next_seq();
        let keep = state.keep(newest);
        let limit = chunk_limit(self.log_limit());
        let mut rest = publications.as_slice();
        while !rest.is_empty() {
            let position = Position { offset: state.next_offset, ..first };
            let (chunk, encoded) = Chunk::encode(state.log.next_seq(), position, rest, limit, &self.ledger);
            rest = rest.get(encoded..).unwrap_or_default();
            self.apply(state, chunk, keep);
        }
        self.trim(state, newest);
        state.readers.notify(newest);
        left_out
    }

    /// Stores a chunk whose publications have their positions. Never refuses one. The log keeps all chunks from
    /// position `keep` on. A chunk that stands for a gap begins a new epoch.
    fn apply(&self, state: &mut ChannelState, chunk: Chunk, keep: u64) {
        let before = state.snapshot.bytes();
        if chunk.is_gap() {
            (state.epoch, state.epoch_start) = (chunk.epoch, chunk.first_offset());
            state.snapshot.clear(chunk.first_offset());
        } else {
            chunk.keyed().for_each(|entry| state.snapshot.apply(entry));
        }
        self.resized(before, state.snapshot.bytes());
        state.next_offset = chunk.last_offset() + 1;
        chunk.charge();
        state.bytes += chunk.bytes() as u64;
        state.log.push(Arc::new(chunk), keep, |gone| gone.forget());
    }

    /// Drops chunks before the position `newest` until the log, and all logs of the tenant together, are within their
    /// limits.
    fn trim(&self, state: &mut ChannelState, newest: u64) {
        while state.log.excess() > MAX_UNREAD {
            let Some(gone) = state.log.pop_before(newest) else { break };
            gone.forget();
        }
        while self.account().logs_excess() > 0 {
            let Some(gone) = state.log.pop_before(newest) else { break };
            gone.forget();
        }
    }

    /// Updates the byte total after the snapshot changed size.
    fn resized(&self, before: usize, now: usize) {
        if now > before {
            self.account().add(Part::Logs, now - before);
        } else {
            self.account().give_back(Part::Logs, before - now);
        }
    }

    fn account(&self) -> &Arc<Account> {
        self.ledger.account()
    }

    /// Adds a reader, which is notified of all chunks from now on. Returns a log without the older chunks, and the
    /// position at which these end.
    pub fn attach(&self, reader: Arc<dyn Reader>, token: usize) -> (Log, Position) {
        let mut state = self.state.lock();
        state.readers.attach(reader, token);
        (state.log.continued(), state.position())
    }

    /// Hands over the chunks from position `seq` on that the log still has. Returns the position of the log's oldest
    /// chunk.
    pub fn read(&self, reader: &Arc<dyn Reader>, seq: u64, mut take: impl FnMut(&Arc<Chunk>)) -> u64 {
        let mut state = self.state.lock();
        state.readers.caught_up(reader);
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

    /// Notes that a shard has one subscriber more.
    pub fn joined(&self) {
        if self.subscribers.fetch_add(1, Ordering::Relaxed) == 0 {
            self.demand.channel_active(&self.name);
        }
    }

    /// Notes that a shard has one subscriber less.
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

    /// Whether it must be kept while nobody follows it, because its publications would be missed.
    fn is_kept(&self) -> bool {
        let state = self.state.lock();
        state.next_offset > 1 && (self.rule.load().history.kept || !state.snapshot.is_empty())
    }

    /// Drops an eighth of the log, but not the newest chunk unless `all` may go. `false`: there is no other chunk. Then
    /// the channel stands aside until it has another.
    fn drop_oldest(&self, all: bool) -> bool {
        let mut state = self.state.lock();
        let next = state.log.next_seq();
        let newest = if all { next } else { next.saturating_sub(1) };
        let enough = state.log.bytes() - state.log.bytes() / 8;
        let mut dropped = false;
        while state.log.bytes() > enough
            && let Some(gone) = state.log.pop_before(newest)
        {
            gone.forget();
            dropped = true;
        }
        if dropped {
            // So that they let go of these chunks, too.
            state.readers.notify(next);
        } else {
            self.ledger.set_aside(state.log.bytes() > 0);
        }
        dropped
    }

    /// Takes another rule. Chunks over its limit are dropped with the next publication.
    fn reconfigure(&self, rule: ChannelRule, compress_above: usize) {
        let mut state = self.state.lock();
        state.log.set_max_bytes(rule.log_bytes);
        state.snapshot.set_max_keys(rule.max_keys);
        self.compress_above.store(compress_above, Ordering::Relaxed);
        self.rule.store(Arc::new(rule));
    }

    /// Bytes that its log may have.
    pub fn log_limit(&self) -> usize {
        self.rule.load().log_bytes
    }

    /// Bytes that its log has, in all formats.
    fn log_bytes(&self) -> usize {
        self.ledger.bytes()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let state = self.state.lock();
        state.log.from(0).for_each(|chunk| chunk.forget());
        self.resized(state.snapshot.bytes(), 0);
    }
}

/// Bytes at which a chunk ends. It must be small beside its log, which drops chunks whole.
fn chunk_limit(log_bytes: usize) -> usize {
    CHUNK_BYTES.min(log_bytes / 8)
}
