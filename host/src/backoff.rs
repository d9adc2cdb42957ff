//! Pauses between attempts, of the length that each user gives. They double with each failure in a row.

use std::time::Duration;

/// How long the pauses are.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// Failures in a row that need no pause.
    pub free: u32,
    /// The first pause.
    pub first: Duration,
    /// The pause that the others grow to.
    pub longest: Duration,
    /// Whether a pause is anywhere between nothing and its full length. Then those that failed together do not try
    /// again together.
    pub jitter: bool,
}

/// The failures in a row, and the pauses after them.
#[derive(Debug)]
pub struct Backoff {
    pauses: Pauses,
    failures: u32,
}

impl Backoff {
    pub const fn new(pauses: Pauses) -> Self {
        Self { pauses, failures: 0 }
    }

    /// Counts a failure. Returns the pause before the next attempt.
    pub fn fail(&mut self) -> Duration {
        self.fail_between(0.0, self.pauses.longest)
    }

    /// The same, with another pause that they grow to, and with at least this part of each even with jitter.
    pub fn fail_between(&mut self, least: f64, longest: Duration) -> Duration {
        let pause = self.full_pause(longest);
        self.failures = self.failures.saturating_add(1);
        if self.pauses.jitter { pause.mul_f64(least + (1.0 - least) * rand::random::<f64>()) } else { pause }
    }

    /// Ends the row of failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn full_pause(&self, longest: Duration) -> Duration {
        let Pauses { free, first, .. } = self.pauses;
        let doublings = self.failures.checked_sub(free);
        doublings.map_or(Duration::ZERO, |times| first.saturating_mul(2_u32.saturating_pow(times)).min(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses =
        Pauses { free: 0, first: Duration::from_millis(500), longest: Duration::from_secs(30), jitter: false };

    fn millis(backoff: &mut Backoff, failures: usize) -> Vec<u128> {
        (0..failures).map(|_| backoff.fail().as_millis()).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new(PAUSES);
        assert_eq!(millis(&mut backoff, 8), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(millis(&mut backoff, 40)[39], 30000);
        backoff.reset();
        assert_eq!(millis(&mut backoff, 2), [500, 1000]);
    }

    #[test]
    fn the_first_failures_may_be_free() {
        let mut backoff = Backoff::new(Pauses { free: 2, ..PAUSES });
        assert_eq!(millis(&mut backoff, 4), [0, 0, 500, 1000]);
        backoff.reset();
        assert_eq!(millis(&mut backoff, 3), [0, 0, 500]);
    }

    #[test]
    fn with_jitter_a_pause_is_anywhere_below_its_full_length() {
        let jitter = Pauses { jitter: true, ..PAUSES };
        let mut waits: Vec<_> = (0..1000).map(|_| Backoff::new(jitter).fail()).collect();
        waits.sort();
        assert!(waits[100] < Duration::from_millis(150));
        assert!(waits[900] > Duration::from_millis(350));
        assert!(waits[999] <= PAUSES.first);
    }
}
