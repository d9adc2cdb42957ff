//! What chunks are charged as on their tenant's account: the log's while the log has them, then what clients still hold
//! of them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    account::{Account, Part},
    channel::sizes::SizePlace,
};

/// The bytes of one channel's log, in all formats.
pub struct LogLedger {
    account: Arc<Account>,
    bytes: AtomicUsize,
    /// Where the log stands among its tenant's. `None`: it is no tenant's.
    place: Option<SizePlace>,
}

impl LogLedger {
    pub fn new(account: &Arc<Account>, place: SizePlace) -> Arc<Self> {
        Arc::new(Self { account: Arc::clone(account), bytes: AtomicUsize::new(0), place: Some(place) })
    }

    #[cfg(test)]
    pub fn of_test(account: &Arc<Account>) -> Arc<Self> {
        Arc::new(Self { account: Arc::clone(account), bytes: AtomicUsize::new(0), place: None })
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.settle();
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.settle();
    }

    fn settle(&self) {
        self.place.iter().for_each(|place| place.settle(&self.bytes));
    }

    /// Notes that the log has nothing to drop but its newest chunk, or not even that.
    pub fn set_aside(&self, has_newest: bool) {
        self.place.iter().for_each(|place| place.set_aside(has_newest));
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The bytes of one chunk. Dropping this gives them back.
pub(super) struct ChunkCharge {
    ledger: Arc<LogLedger>,
    /// How many bytes were charged, and the bit [`PINNED`].
    state: AtomicUsize,
}

/// The log has dropped the chunk.
const PINNED: usize = 1 << (usize::BITS - 1);

impl ChunkCharge {
    pub fn new(ledger: &Arc<LogLedger>) -> Self {
        Self { ledger: Arc::clone(ledger), state: AtomicUsize::new(0) }
    }

    /// Charges bytes that the chunk takes now.
    pub fn add(&self, bytes: usize) {
        let log = &*self.ledger;
        let account = &log.account;
        // Added before it is known whose they are: a total must not be too small, not even for a moment.
        account.add(Part::Logs, bytes);
        log.add(bytes);
        if self.state.fetch_add(bytes, Ordering::Relaxed) & PINNED != 0 {
            account.pin(bytes);
            log.give_back(bytes);
        }
    }

    pub fn is_pinned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PINNED != 0
    }

    /// Has the logs let go of what they have over their limits. No channel may be locked.
    pub fn relieve(&self) {
        let account = &self.ledger.account;
        account.relieve(account.logs_excess());
    }

    /// Notes that the log has dropped the chunk. `more`: bytes that were counted elsewhere while the channel had it.
    pub fn pin(&self, more: usize) {
        let before = self.state.fetch_or(PINNED, Ordering::Relaxed);
        if before & PINNED == 0 {
            self.ledger.account.pin(before);
            self.ledger.give_back(before);
            self.add(more);
        }
    }
}

impl Drop for ChunkCharge {
    fn drop(&mut self) {
        self.pin(0);
        self.ledger.account.give_back(Part::Pinned, *self.state.get_mut() & !PINNED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_the_logs_until_that_drops_it_and_its_holders_until_they_do() {
        let ledger = LogLedger::of_test(&Account::of_test());
        let bytes = || [Part::Logs, Part::Pinned].map(|part| ledger.account.bytes(part));
        let charge = ChunkCharge::new(&ledger);
        charge.add(100);
        assert_eq!((bytes(), ledger.bytes()), ([100, 0], 100));
        charge.pin(0);
        charge.pin(0);
        charge.add(20);
        assert_eq!((bytes(), ledger.bytes()), ([0, 120], 0));
        drop(charge);
        assert_eq!(bytes(), [0, 0]);
        // A snapshot's bytes count with its keys while the channel has it.
        let snapshot = ChunkCharge::new(&ledger);
        snapshot.add(10);
        snapshot.pin(50);
        assert_eq!((bytes(), ledger.bytes()), ([0, 60], 0));
        drop(snapshot);
        assert_eq!((bytes(), ledger.account.excess(0)), ([0, 0], 0));
    }
}
