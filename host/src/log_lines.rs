//! Limits how much of the log a tenant takes: its guests' lines, and the host's lines about them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{metrics::TenantMetrics, rate::Rate};

/// Bytes of a text for which a line counts once more.
const LINE: usize = 1 << 10;

/// The limit of one tenant. Lines over it are counted and left out, and one line says so.
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

    /// Takes a line from the limit. Returns whether it may be written.
    pub fn take(&self) -> bool {
        self.take_long(0)
    }

    /// Does the same for a line with a text of this many bytes. A long one counts as several.
    pub fn take_long(&self, bytes: usize) -> bool {
        let taken = self.rate.take_all(1 + bytes / LINE);
        if !taken {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.metrics.limited("log-lines-per-second", 1);
        }
        taken
    }

    /// Logs how many lines were left out since the last call. It is called now and then, so that a flood of lines does
    /// not become a flood of these.
    pub fn tell(&self) {
        let lines = self.left_out.swap(0, Ordering::Relaxed);
        if lines > 0 {
            let most = self.rate.per_second();
            tracing::warn!(tenant.name = %self.tenant, lines, most, "lines left out: more than log-lines-per-second");
        }
    }
}
