//! Limits on how often something may happen.
//!
//! A [`TokenBucket`] has at most one second's tokens and gets them back as time passes. It counts the tokens that are
//! owed, in billionths. At any rate a whole number of these comes back per nanosecond, so nothing is ever rounded. The
//! caller passes the time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::sync::Mutex;

/// One token, in the units of [`TokenBucket::owed`]: at a rate of one a second, one unit comes back per nanosecond.
const TOKEN: u64 = 1_000_000_000;

/// The tokens that were taken and have not come back yet. Each take names the rate, so that a new rate holds at once.
#[derive(Debug, Default)]
pub struct TokenBucket {
    owed: u64,
    at: Option<Instant>,
}

impl TokenBucket {
    /// Takes the wanted tokens, or as many as there are. Returns how many.
    pub fn take_some(&mut self, wanted: usize, per_second: usize, now: Instant) -> usize {
        let taken = wanted.min(self.left(per_second, now));
        self.owed = self.owed.saturating_add(tokens(taken));
        taken
    }

    /// Takes all of the wanted tokens, or none. If nothing is owed, they may be more than one second's, and the next
    /// take waits longer. Otherwise something large could never pass.
    pub fn take(&mut self, wanted: usize, per_second: usize, now: Instant) -> bool {
        let most = self.settle(per_second, now);
        let owed = self.owed.saturating_add(tokens(wanted));
        let taken = self.owed == 0 || owed <= most;
        if taken {
            self.owed = owed;
        }
        taken
    }

    /// Takes all of the wanted tokens, however many are owed then. Returns how long it takes until no more than one
    /// second's are. Those who do not wait add a second's to that at most, so that those who do wait have an end of it.
    pub fn owe(&mut self, wanted: usize, per_second: usize, now: Instant) -> Duration {
        let most = self.settle(per_second, now);
        self.owed = self.owed.min(most.saturating_mul(2)).saturating_add(tokens(wanted));
        Duration::from_nanos(self.owed.saturating_sub(most).div_ceil(per_second.max(1) as u64))
    }

    /// How many tokens are left.
    pub fn left(&mut self, per_second: usize, now: Instant) -> usize {
        let most = self.settle(per_second, now);
        usize::try_from(most.saturating_sub(self.owed) / TOKEN).unwrap_or(usize::MAX)
    }

    /// Brings back the tokens that are due by now. Returns the most that may be owed.
    fn settle(&mut self, per_second: usize, now: Instant) -> u64 {
        let since = self.at.map(|at| now.saturating_duration_since(at).as_nanos()).unwrap_or_default();
        let back = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(per_second as u64);
        self.owed = self.owed.saturating_sub(back);
        // Threads may bring times that are slightly out of order.
        self.at = self.at.max(Some(now));
        tokens(per_second)
    }
}

fn tokens(count: usize) -> u64 {
    (count as u64).saturating_mul(TOKEN)
}

/// A rate that several threads share. Each take takes one lock.
#[derive(Debug)]
pub struct Rate {
    per_second: AtomicUsize,
    bucket: Mutex<TokenBucket>,
}

impl Rate {
    pub fn new(per_second: usize) -> Self {
        Self { per_second: AtomicUsize::new(per_second), bucket: Mutex::default() }
    }

    pub fn per_second(&self) -> usize {
        self.per_second.load(Ordering::Relaxed)
    }

    /// Changes the rate from now on. What was owed at a higher one does not take longer now.
    pub fn set(&self, per_second: usize) {
        let mut bucket = self.bucket.lock();
        bucket.owed = bucket.owed.min(tokens(per_second));
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Takes the wanted tokens, or as many as there are. Returns how many.
    pub fn take_some(&self, wanted: usize) -> usize {
        self.with(|bucket, per_second| bucket.take_some(wanted, per_second, Instant::now()))
    }

    /// Takes all of the wanted tokens, or none; see [`TokenBucket::take`].
    pub fn take_all(&self, wanted: usize) -> bool {
        self.with(|bucket, per_second| bucket.take(wanted, per_second, Instant::now()))
    }

    /// Takes all of the wanted tokens, even more than there are; see [`TokenBucket::owe`].
    pub fn owe(&self, wanted: usize, now: Instant) -> Duration {
        self.with(|bucket, per_second| bucket.owe(wanted, per_second, now))
    }

    /// How many tokens are left.
    pub fn left(&self, now: Instant) -> usize {
        self.with(|bucket, per_second| bucket.left(per_second, now))
    }

    /// Takes one token, if there is one.
    pub fn take_one(&self) -> bool {
        self.take_some(1) == 1
    }

    /// Runs `take` under the lock, with the rate.
    fn with<T>(&self, take: impl FnOnce(&mut TokenBucket, usize) -> T) -> T {
        take(&mut self.bucket.lock(), self.per_second())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tokens_of_a_second_come_back_one_by_one() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::default());
        let at = |nanos| start + Duration::from_nanos(nanos);
        assert_eq!(bucket.take_some(5, 3, start), 3);
        assert_eq!(bucket.take_some(5, 3, at(333_333_333)), 0);
        assert_eq!(bucket.take_some(5, 3, at(333_333_334)), 1);
        assert_eq!(bucket.take_some(5, 3, at(666_666_667)), 1, "what is left of a token is kept");
        assert_eq!(bucket.take_some(5, 3, at(1_000_000_000)), 1);
        // It fills up while idle, and no further.
        assert_eq!(bucket.take_some(usize::MAX, 3, at(1 << 60)), 3);
        // A time that runs backwards brings nothing back, and the same time brings nothing twice.
        assert_eq!(bucket.take_some(5, 3, start), 0);
        assert_eq!(bucket.take_some(5, 3, at(1 << 60)), 0);
    }

    #[test]
    fn what_is_larger_than_a_second_has_passes_alone() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(bucket.take(10, 4, start));
        assert!(!bucket.take(1, 4, at(1)), "six are owed still");
        assert!(bucket.take(2, 4, at(2)));
        assert!(!bucket.take(1, 4, at(2)));
        assert!(!bucket.take(10, 4, at(2)));
        assert!(bucket.take(10, 4, at(3)));
    }

    #[test]
    fn more_than_there_is_can_be_owed_and_takes_its_time() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::default());
        let millis = Duration::from_millis;
        assert_eq!(bucket.owe(10, 10, start), Duration::ZERO);
        assert_eq!((bucket.owe(5, 10, start), bucket.left(10, start)), (millis(500), 0));
        assert_eq!(bucket.owe(0, 10, start + millis(200)), millis(300));
        assert_eq!(bucket.owe(1, 10, start + millis(500)), millis(100));
        assert_eq!(bucket.left(10, start + millis(800)), 2);
    }

    #[test]
    fn another_rate_holds_at_once() {
        let (start, mut bucket) = (Instant::now(), TokenBucket::default());
        assert_eq!(bucket.take_some(10, 10, start), 10);
        assert_eq!(bucket.take_some(10, 20, start), 10);
        assert_eq!(bucket.take_some(10, 5, start), 0);
    }

    proptest! {
        /// However the takes are spread, as many pass as the rate and one second's tokens allow: no more, and no fewer.
        #[test]
        fn neither_more_nor_less_than_the_rate(
            per_second in 1_usize..5_000_000,
            steps in prop::collection::vec((0_u64..3_000_000, 0_usize..50), 1..200),
        ) {
            let (start, mut bucket) = (Instant::now(), TokenBucket::default());
            let (mut nanos, mut taken, mut refused_last) = (0_u64, 0_u128, false);
            for (step, wanted) in steps {
                nanos += step;
                let got = bucket.take_some(wanted, per_second, start + Duration::from_nanos(nanos));
                taken += got as u128;
                refused_last = got < wanted;
                let most = per_second as u128 + u128::from(nanos) * per_second as u128 / u128::from(TOKEN);
                prop_assert!(taken <= most);
            }
            if refused_last {
                // It is empty: less than one token is left.
                prop_assert_eq!(bucket.take_some(1, per_second, start + Duration::from_nanos(nanos)), 0);
            }
        }
    }
}
