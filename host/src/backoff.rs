//! Exponential backoff with full jitter: clients that lost a partner together do not come back together.

use std::time::Duration;

/// Bound of the first wait.
const BASE: Duration = Duration::from_millis(500);
/// Bound of every later one.
const CAP: Duration = Duration::from_secs(30);
/// A connection this old was healthy: the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait now that a connection has ended that was up for `healthy`.
    pub fn after(&mut self, healthy: Duration) -> Duration {
        self.note(healthy);
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::random::<f64>())
    }

    /// A connection was up for `healthy`, and that it ended is no failure.
    pub fn note(&mut self, healthy: Duration) {
        if healthy >= HEALTHY {
            self.failures = 0;
        }
    }

    fn bound(&self) -> Duration {
        BASE.saturating_mul(2_u32.saturating_pow(self.failures)).min(CAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap_and_health_resets_them() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        for _ in 0..40 {
            bounds.push(backoff.bound().as_millis());
            assert!(backoff.after(Duration::from_secs(59)) <= CAP);
        }
        assert_eq!(bounds[..8], [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(bounds[39], 30000);
        assert!(backoff.after(Duration::from_secs(60)) <= BASE);
        assert_eq!(backoff.bound().as_millis(), 1000);
    }

    #[test]
    fn the_wait_is_anywhere_below_its_bound() {
        let mut waits: Vec<_> = (0..1000).map(|_| Backoff::default().after(Duration::ZERO)).collect();
        waits.sort();
        assert!(waits[100] < Duration::from_millis(150));
        assert!(waits[900] > Duration::from_millis(350));
        assert!(waits[999] <= BASE);
    }
}
