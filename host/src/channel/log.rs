//! The last chunks of a channel, oldest first, bounded in bytes.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::channel::Chunk;

/// A window on a channel's chunks. The channel has one. Each shard that reads the channel has its own, with the same
/// chunks.
#[derive(Clone)]
pub struct Log {
    chunks: VecDeque<Arc<Chunk>>,
    next_seq: u64,
    bytes: usize,
    max_bytes: usize,
}

impl Log {
    pub fn new(max_bytes: usize) -> Self {
        Self { chunks: VecDeque::new(), next_seq: 0, bytes: 0, max_bytes }
    }

    /// The position after the newest chunk. A reader that has everything is there.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The position of the oldest chunk.
    pub fn oldest_seq(&self) -> u64 {
        self.next_seq - self.chunks.len() as u64
    }

    /// The chunks that have publications after an offset.
    pub fn after(&self, offset: u64) -> impl DoubleEndedIterator<Item = &Arc<Chunk>> {
        self.chunks.range(self.chunks.partition_point(|chunk| chunk.last_offset() <= offset)..)
    }

    /// The newest chunk that was published before a time.
    pub fn before(&self, at: Instant) -> Option<&Arc<Chunk>> {
        self.chunks.get(self.chunks.partition_point(|chunk| chunk.at < at).checked_sub(1)?)
    }

    /// Adds older chunks before the oldest one. There must be no gap between them.
    pub fn prepend(&mut self, older: Vec<Arc<Chunk>>) {
        for chunk in older.into_iter().rev() {
            if chunk.seq + 1 == self.oldest_seq() {
                self.bytes += chunk.size();
                self.chunks.push_front(chunk);
            }
        }
    }

    /// The chunks from a position on.
    pub fn from(&self, seq: u64) -> impl DoubleEndedIterator<Item = &Arc<Chunk>> {
        let skip = usize::try_from(seq.saturating_sub(self.oldest_seq())).unwrap_or(usize::MAX);
        self.chunks.range(skip.min(self.chunks.len())..)
    }

    /// Adds a chunk. Drops the oldest ones while there are too many bytes, but none from position `keep` on. If
    /// positions are missing before the new chunk, drops everything older. Each dropped chunk is given to `gone`.
    pub fn push(&mut self, chunk: Arc<Chunk>, keep: u64, mut gone: impl FnMut(Arc<Chunk>)) {
        let gap = chunk.seq != self.next_seq;
        while gap && let Some(oldest) = self.pop_before(u64::MAX) {
            gone(oldest);
        }
        self.bytes += chunk.size();
        self.next_seq = chunk.seq + 1;
        self.chunks.push_back(chunk);
        while self.bytes > self.max_bytes
            && let Some(oldest) = self.pop_before(keep)
        {
            gone(oldest);
        }
    }

    /// Takes out the oldest chunk, if it is before a position.
    pub fn pop_before(&mut self, seq: u64) -> Option<Arc<Chunk>> {
        let oldest = self.chunks.pop_front_if(|oldest| oldest.seq < seq)?;
        self.bytes -= oldest.size();
        Some(oldest)
    }

    /// How many bytes it has now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many bytes it has over its limit. They are kept for readers that have not read them yet.
    pub fn excess(&self) -> usize {
        self.bytes.saturating_sub(self.max_bytes)
    }

    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// An empty log, which continues where this one ends.
    pub fn continued(&self) -> Self {
        Self { chunks: VecDeque::new(), next_seq: self.next_seq, bytes: 0, max_bytes: self.max_bytes }
    }
}

#[cfg(test)]
mod tests {
    use wire::{Epoch, Frame, Kind, Position};

    use super::*;
    use crate::{
        account::Account,
        channel::{Publication, ledger::LogLedger},
    };

    fn chunk(seq: u64, size: usize) -> Arc<Chunk> {
        let data = Frame { kind: Kind::Binary, bytes: vec![0; size - 2].into() };
        let publication = Publication { channel: "c".into(), key: None, remove: false, data, framed: None };
        let ledger = LogLedger::of_test(&Account::of_test());
        Arc::new(Chunk::encode(seq, Position { epoch: Epoch(1), offset: seq }, &[publication], usize::MAX, &ledger).0)
    }

    #[test]
    fn keeps_the_newest_within_its_bytes() {
        let mut log = Log::new(2 * chunk(0, 40).size() + 1);
        for seq in 0..5 {
            log.push(chunk(seq, 40), seq, drop);
        }
        assert_eq!(log.oldest_seq(), 3);
        assert_eq!(log.from(0).map(|chunk| chunk.seq).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(log.from(4).map(|chunk| chunk.seq).collect::<Vec<_>>(), [4]);
        assert_eq!(log.next_seq(), 5);
        assert!(log.from(5).next().is_none());
    }

    #[test]
    fn a_burst_larger_than_the_log_is_kept_until_the_next() {
        let mut log = Log::new(100);
        log.push(chunk(0, 40), 0, drop);
        log.push(chunk(1, 120), 1, drop);
        log.push(chunk(2, 120), 1, drop);
        assert_eq!(log.from(0).map(|chunk| chunk.seq).collect::<Vec<_>>(), [1, 2]);
        log.push(chunk(3, 40), 3, drop);
        assert_eq!(log.from(0).map(|chunk| chunk.seq).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn begins_anew_after_a_gap() {
        let mut log = Log::new(1000);
        let mut gone = Vec::new();
        log.push(chunk(0, 40), 0, |chunk| gone.push(chunk.seq));
        log.push(chunk(5, 40), 5, |chunk| gone.push(chunk.seq));
        assert_eq!(gone, [0]);
        assert_eq!((log.oldest_seq(), log.next_seq()), (5, 6));
    }
}
