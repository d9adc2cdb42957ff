//! How much a tenant may write to the log: its guests' lines, and the host's about what they do wrong.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{metrics::TenantMetrics, rate::Rate};

/// The lines of one tenant. What is over its limit is counted and left out, and one line says so.
pub struct LogLines {
    tenant: Arc<str>,
    rate: Rate,
    left_out: AtomicUsize,
    metrics: Arc<TenantMetrics>,
}

impl LogLines {
    pub fn new(tenant: Arc<str>, per_second: usize, metrics: Arc<TenantMetrics>) -> Self {
        Self { tenant, rate: Rate::new(per_second), left_out: AtomicUsize::new(0), metrics }
    }

    pub fn set(&self, per_second: usize) {
        self.rate.set(per_second);
    }

    /// Whether another line may be written.
    pub fn take(&self) -> bool {
        let taken = self.rate.take_one();
        if !taken {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.metrics.limited("log-lines-per-second", 1);
        }
        taken
    }

    /// Says how many were left out since the last time. Called now and then, so that a flood of lines is not followed by
    /// another of these.
    pub fn tell(&self) {
        let lines = self.left_out.swap(0, Ordering::Relaxed);
        if lines > 0 {
            let most = self.rate.per_second();
            tracing::warn!(tenant.name = %self.tenant, lines, most, "lines left out: more than log-lines-per-second");
        }
    }
}
