//! The clock that all processes of one machine share.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment before the machine started.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither part of a monotonic time is negative.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
