//! How often something may happen.
//!
//! A [`Bucket`] has one second's tokens at most and gets them back as time passes. It counts what is owed, in parts of a
//! token that a nanosecond brings back whole, so that no rate is rounded however often it is asked. Time comes from the caller.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use crate::sync::Mutex;

/// One token, in what a rate of one a second brings back in a nanosecond.
const TOKEN: u64 = 1_000_000_000;

/// Tokens taken and not come back yet. The rate is said at each take, so that another holds at once.
#[derive(Debug, Default)]
pub struct Bucket {
    owed: u64,
    at: Option<Instant>,
}

impl Bucket {
    /// Takes as many of the tokens as there are.
    pub fn take_some(&mut self, wanted: usize, per_second: usize, now: Instant) -> usize {
        let most = self.settle(per_second, now);
        let free = usize::try_from(most.saturating_sub(self.owed) / TOKEN).unwrap_or(usize::MAX);
        let taken = wanted.min(free);
        self.owed = self.owed.saturating_add(tokens(taken));
        taken
    }

    /// Takes all of the tokens, or none. More than a second's are there when nothing is owed, and the next take waits the
    /// longer: else what is large would never pass.
    pub fn take(&mut self, wanted: usize, per_second: usize, now: Instant) -> bool {
        let most = self.settle(per_second, now);
        let owed = self.owed.saturating_add(tokens(wanted));
        let taken = self.owed == 0 || owed <= most;
        if taken {
            self.owed = owed;
        }
        taken
    }

    /// Lets come back what has by now; returns what may be owed at most.
    fn settle(&mut self, per_second: usize, now: Instant) -> u64 {
        let since = self.at.map(|at| now.saturating_duration_since(at).as_nanos()).unwrap_or_default();
        let back = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(per_second as u64);
        self.owed = self.owed.saturating_sub(back);
        // Threads may come with times that are not quite in order.
        self.at = self.at.max(Some(now));
        tokens(per_second)
    }
}

fn tokens(count: usize) -> u64 {
    (count as u64).saturating_mul(TOKEN)
}

/// A rate that many share: one lock at each take.
#[derive(Debug)]
pub struct Rate {
    per_second: AtomicUsize,
    bucket: Mutex<Bucket>,
}

impl Rate {
    pub fn new(per_second: usize) -> Self {
        Self { per_second: AtomicUsize::new(per_second), bucket: Mutex::default() }
    }

    pub fn per_second(&self) -> usize {
        self.per_second.load(Ordering::Relaxed)
    }

    /// From now on.
    pub fn set(&self, per_second: usize) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Takes as many of the tokens as there are.
    pub fn take_some(&self, wanted: usize) -> usize {
        self.with(|bucket, per_second| bucket.take_some(wanted, per_second, Instant::now()))
    }

    /// Takes one token, if there is one.
    pub fn take_one(&self) -> bool {
        self.take_some(1) == 1
    }

    /// Every change is whole before the lock is given back.
    fn with<T>(&self, take: impl FnOnce(&mut Bucket, usize) -> T) -> T {
        take(&mut self.bucket.lock(), self.per_second())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tokens_of_a_second_come_back_one_by_one() {
        let (start, mut bucket) = (Instant::now(), Bucket::default());
        let at = |nanos| start + Duration::from_nanos(nanos);
        assert_eq!(bucket.take_some(5, 3, start), 3);
        assert_eq!(bucket.take_some(5, 3, at(333_333_333)), 0);
        assert_eq!(bucket.take_some(5, 3, at(333_333_334)), 1);
        assert_eq!(bucket.take_some(5, 3, at(666_666_667)), 1, "what is left of a token is kept");
        assert_eq!(bucket.take_some(5, 3, at(1_000_000_000)), 1);
        // Idle, it fills up and no further.
        assert_eq!(bucket.take_some(usize::MAX, 3, at(1 << 60)), 3);
        // Time that runs backwards brings nothing, and nothing twice.
        assert_eq!(bucket.take_some(5, 3, start), 0);
        assert_eq!(bucket.take_some(5, 3, at(1 << 60)), 0);
    }

    #[test]
    fn what_is_larger_than_a_second_has_passes_alone() {
        let (start, mut bucket) = (Instant::now(), Bucket::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(bucket.take(10, 4, start));
        assert!(!bucket.take(1, 4, at(1)), "six are owed still");
        assert!(bucket.take(2, 4, at(2)));
        assert!(!bucket.take(1, 4, at(2)));
        assert!(!bucket.take(10, 4, at(2)));
        assert!(bucket.take(10, 4, at(3)));
    }

    #[test]
    fn another_rate_holds_at_once() {
        let (start, mut bucket) = (Instant::now(), Bucket::default());
        assert_eq!(bucket.take_some(10, 10, start), 10);
        assert_eq!(bucket.take_some(10, 20, start), 10);
        assert_eq!(bucket.take_some(10, 5, start), 0);
    }

    proptest! {
        /// However takes are spread, no more pass than the rate says and a second's at once, and no fewer.
        #[test]
        fn neither_more_nor_less_than_the_rate(
            per_second in 1_usize..5_000_000,
            steps in prop::collection::vec((0_u64..3_000_000, 0_usize..50), 1..200),
        ) {
            let (start, mut bucket) = (Instant::now(), Bucket::default());
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
