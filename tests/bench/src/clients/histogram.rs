//! Latencies, counted in buckets that are at most 1.6% wide.

/// Buckets for each doubling. Values below this many nanoseconds have a bucket each.
const SHARES: u64 = 64;
const SHARE_BITS: u32 = SHARES.ilog2();
const BUCKETS: usize = (u64::BITS - SHARE_BITS + 1) as usize * SHARES as usize;

pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }

    pub fn add(&mut self, nanoseconds: u64) {
        if let Some(count) = self.counts.get_mut(bucket(nanoseconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// Adds the latencies of another histogram.
    pub fn join(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.total += other.total;
    }

    /// The latency in nanoseconds that this share of all values does not exceed. Without values, 0.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut counted = 0;
        let reached = self.counts.iter().position(|count| {
            counted += count;
            counted >= rank
        });
        reached.map_or(0, lowest)
    }
}

impl FromIterator<u64> for Histogram {
    fn from_iter<T: IntoIterator<Item = u64>>(latencies: T) -> Self {
        let mut histogram = Self::new();
        latencies.into_iter().for_each(|nanoseconds| histogram.add(nanoseconds));
        histogram
    }
}

fn bucket(value: u64) -> usize {
    let doublings = (value.max(1).ilog2() + 1).saturating_sub(SHARE_BITS + 1);
    (u64::from(doublings) * SHARES + (value >> doublings)) as usize
}

/// The smallest value that is counted in a bucket.
fn lowest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / SHARES).saturating_sub(1);
    (bucket - doublings * SHARES) << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_narrow() {
        for value in (0..2_000).chain((0..64).map(|bit| 1 << bit)).chain([u64::MAX, 12_345_678]) {
            let low = lowest(bucket(value));
            assert!(low <= value && (value - low) as f64 <= value as f64 / 64.0, "{value} {low}");
            assert!(bucket(value) < BUCKETS);
            assert_eq!(bucket(low), bucket(value));
        }
    }

    #[test]
    fn quantiles_are_by_rank() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), 0);
        (1..=100).for_each(|value| histogram.add(value));
        assert_eq!([0.0, 0.01, 0.5, 0.99, 1.0].map(|share| histogram.quantile(share)), [1, 1, 50, 99, 100]);
    }
}
