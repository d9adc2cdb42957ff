//! A channel's past: resuming, pages of the log, the snapshot.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use config::History;
use wire::{Entry, Frame, Key, Page, Position};

use crate::channel::{Channel, ChannelState, Chunk, Since, SnapshotNow, sequence::Sequencer};

/// Most bytes of payloads in one page. Only its first publication may have more.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Time between two looks at a large snapshot's keys, in which others can lock the channel.
const PAUSE: Duration = Duration::from_micros(50);

/// Where a client begins in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the snapshot, if the channel gives one, and then with what follows.
    Now,
    /// After the channel's position at which the client was let in. If that is gone: with what follows now.
    From(Position),
    /// After the last position that the client has, with what it has missed.
    After(Position),
}

impl Channel {
    /// Whether a client could go on after a position now: nothing after it is missing.
    pub fn can_resume_after(&self, after: Position) -> bool {
        self.can_resume(&self.state.lock(), after)
    }

    /// Where a client that is let in now begins.
    pub fn start(&self) -> Start {
        if self.gives_snapshot() { Start::Now } else { Start::From(self.state.lock().position()) }
    }

    /// The chunks that a client needs to go on after a position, up to the chunk `oldest`, which its shard has. Oldest
    /// first. `None`: there is a gap.
    pub fn resume(&self, after: Position, oldest: u64) -> Option<Vec<Arc<Chunk>>> {
        let state = self.state.lock();
        if !self.can_resume(&state, after) {
            return None;
        }
        let missed = state.log.after(after.offset);
        Some(missed.take_while(|chunk| chunk.seq < oldest).map(Arc::clone).collect())
    }

    /// The first chunk that a client is sent: the snapshot, or its part after an offset. The client goes on in the log
    /// at the chunk's `seq`, which is `min_seq` or later. A large snapshot has to be [made](Self::make_snapshot) first.
    pub fn snapshot(&self, since: Since, min_seq: u64) -> SnapshotNow {
        let mut state = self.state.lock();
        let min_seq = min_seq.max(state.log.oldest_seq());
        let end = state.end();
        state.snapshot.chunk(since, end, min_seq, &self.ledger)
    }

    /// Makes the snapshot for readers that have this, for [`Channel::snapshot`]. The channel is locked for moments
    /// only. `None`: an epoch has ended meanwhile.
    pub fn make_snapshot(&self, since: Since) -> Option<Arc<Chunk>> {
        let (end, with_removals) = {
            let state = self.state.lock();
            (state.end(), state.snapshot.has_removals_for(since))
        };
        // What changes from here on comes again behind `end`.
        let (mut entries, mut after) = (Vec::new(), 0);
        loop {
            let part = {
                let state = self.state.lock();
                if state.epoch != end.epoch {
                    return None;
                }
                state.snapshot.part(after, with_removals)
            };
            let Some((last, part)) = part else { break };
            after = last;
            entries.extend(part);
            // Who waits for the lock has time to take it.
            thread::sleep(PAUSE);
        }
        let entries = entries.iter().filter(|(offset, ..)| *offset < end.next_offset);
        let entries = entries.map(|(offset, key, data)| (*offset, key.clone(), data));
        let chunk = Arc::new(Chunk::snapshot(end.next, end.epoch, entries, &self.ledger));
        let mut state = self.state.lock();
        if state.epoch != end.epoch {
            return None;
        }
        let before = state.snapshot.keep(with_removals, Arc::clone(&chunk), end);
        drop(state);
        // Takes long, if it was large.
        drop(before);
        Some(chunk)
    }

    /// Whether new clients get a snapshot first.
    pub fn gives_snapshot(&self) -> bool {
        self.rule.load().snapshot && !self.state.lock().snapshot.is_empty()
    }

    /// Publications after a position, oldest first. Without a position: the newest ones. At most `limit`.
    pub fn page(&self, after: Option<Position>, limit: usize) -> Page {
        let state = self.state.lock();
        let position = state.position();
        let Some(after) = after else {
            let resumable_from = self.resumable_from(&state);
            let newest = state.log.after(resumable_from).rev().flat_map(|chunk| chunk.after(resumable_from).rev());
            let mut entries = within(newest, limit);
            entries.reverse();
            return Page { position, entries, recovered: None };
        };
        self.page_after(&state, after, limit)
    }

    fn page_after(&self, state: &ChannelState, after: Position, limit: usize) -> Page {
        let recovered = self.can_resume(state, after);
        let entries = if recovered {
            within(state.log.after(after.offset).flat_map(|chunk| chunk.after(after.offset)), limit)
        } else {
            Vec::new()
        };
        Page { position: state.position(), entries, recovered: Some(recovered) }
    }

    /// Publications after a position, oldest first. Without a position: the oldest ones.
    pub fn page_from(&self, after: Option<Position>, limit: usize) -> Page {
        let state = self.state.lock();
        let after = after.unwrap_or_else(|| Position { epoch: state.epoch, offset: self.resumable_from(&state) });
        self.page_after(&state, after, limit)
    }

    /// Publications before a position, newest first. Without a position: the newest ones.
    pub fn page_before(&self, before: Option<Position>, limit: usize) -> Page {
        let state = self.state.lock();
        let position = state.position();
        let recovered = before.map(|before| before.epoch == state.epoch);
        if recovered == Some(false) {
            return Page { position, entries: Vec::new(), recovered };
        }
        let resumable_from = self.resumable_from(&state);
        let end = before.map_or(u64::MAX, |before| before.offset);
        let chunks = state.log.after(resumable_from).rev().skip_while(|chunk| chunk.first_offset() >= end);
        let newest = chunks.flat_map(|chunk| chunk.between(resumable_from, end).rev());
        Page { position, entries: within(newest, limit), recovered }
    }

    /// The latest publications of keys, with offsets greater than `after`, at most `limit`. A key that changes between
    /// two pages comes again in a later page.
    pub fn latest_of_keys(&self, after: u64, limit: usize) -> Page {
        let state = self.state.lock();
        let entry = |(offset, key, data): (u64, &Arc<str>, &Frame)| Entry {
            offset,
            key: Key { name: Some(Arc::clone(key)), remove: false },
            data: data.clone(),
        };
        let entries = within(state.snapshot.after(after).map(entry), limit);
        Page { position: state.position(), entries, recovered: None }
    }

    /// Begins a new epoch, if this one has publications of an upstream that was lost. Readers are told of the gap.
    pub(super) fn lost(&self, upstream: &Arc<str>) {
        self.interrupt(|sequencer| sequencer.lost(upstream));
    }

    /// Begins a new epoch, if there is something in the present one.
    pub(super) fn gap(&self) {
        self.interrupt(Sequencer::gap);
    }

    /// Begins an epoch that is said to begin at a position, if one is.
    fn interrupt(&self, begin: impl FnOnce(&mut Sequencer) -> Option<Position>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(first) = begin(&mut state.sequencer) else { return };
        self.metrics.epochs.inc();
        let seq = state.log.next_seq();
        let keep = state.keep(seq);
        self.apply(state, Chunk::gap(seq, first, &self.ledger), keep);
        state.readers.notify(seq);
    }

    fn can_resume(&self, state: &ChannelState, after: Position) -> bool {
        after.epoch == state.epoch && after.offset < state.next_offset && after.offset >= self.resumable_from(state)
    }

    /// The smallest offset after which nothing is missing, and everything may be read.
    fn resumable_from(&self, state: &ChannelState) -> u64 {
        let History { size, age, bytes, .. } = self.rule.load().history;
        let newest = state.next_offset - 1;
        let first = state.log.from(0).next().map_or(state.next_offset, |chunk| chunk.first_offset());
        let mut resumable_from = (state.epoch_start - 1).max(first - 1).max(newest.saturating_sub(size));
        if bytes < state.log.bytes() {
            let mut left = bytes;
            for chunk in state.log.from(0).rev() {
                let size = chunk.bytes();
                if size > left {
                    resumable_from = resumable_from.max(chunk.last_within(left));
                    break;
                }
                left -= size;
            }
        }
        if let Some(since) = Instant::now().checked_sub(age) {
            resumable_from = resumable_from.max(state.log.before(since).map_or(0, |chunk| chunk.last_offset()));
        }
        resumable_from
    }
}

impl ChannelState {
    pub(super) fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.next_offset - 1 }
    }
}

/// As many publications as fit into a page.
fn within(entries: impl Iterator<Item = Entry>, limit: usize) -> Vec<Entry> {
    let mut bytes = 0;
    let fits = |entry: &Entry| {
        let first = bytes == 0;
        bytes += entry.data.bytes.len() + 1;
        first || bytes <= MAX_PAGE_BYTES
    };
    entries.take(limit).take_while(fits).collect()
}
