//! Limits how many HTTP requests a tenant's components have under way, and begin each second.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{metrics::TenantMetrics, rate::Rate};

/// The limit of one tenant.
pub struct OutboundLimit {
    under_way: AtomicUsize,
    most: AtomicUsize,
    rate: Rate,
    metrics: Arc<TenantMetrics>,
}

/// Counts a request as under way until it is dropped.
pub struct OutboundPermit(Arc<OutboundLimit>);

/// Why a request may not begin now. The refusal has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundRefused {
    #[error("the tenant has as many requests under way as it may, {0}")]
    AtOnce(usize),
    #[error("the tenant begins as many requests as it may, {0} a second")]
    PerSecond(usize),
}

impl OutboundLimit {
    pub fn new(at_once: usize, per_second: usize, metrics: Arc<TenantMetrics>) -> Arc<Self> {
        let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(at_once));
        Arc::new(Self { under_way, most, rate: Rate::new(per_second), metrics })
    }

    /// Changes the limit. Requests under way go on.
    pub fn set(&self, at_once: usize, per_second: usize) {
        self.most.store(at_once, Ordering::Relaxed);
        self.rate.set(per_second);
    }

    /// Begins a request.
    pub fn begin(self: &Arc<Self>) -> Result<OutboundPermit, OutboundRefused> {
        let most = self.most.load(Ordering::Relaxed);
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        let permit = OutboundPermit(Arc::clone(self));
        if before >= most {
            self.metrics.limited("outbound-requests", 1);
            return Err(OutboundRefused::AtOnce(most));
        }
        if !self.rate.take_one() {
            self.metrics.limited("outbound-requests-per-second", 1);
            return Err(OutboundRefused::PerSecond(self.rate.per_second()));
        }
        Ok(permit)
    }
}

impl Drop for OutboundPermit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// A limit, and what its metrics show.
    fn limit(at_once: usize, per_second: usize) -> (Arc<OutboundLimit>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let tenant = Arc::new(metrics.tenant(&"t".into()));
        (OutboundLimit::new(at_once, per_second, tenant), metrics)
    }

    fn refusals(metrics: &Metrics, limit: &str) -> Option<String> {
        let series = format!("edge_relay_limit_refusals_total{{tenant=\"t\",limit=\"{limit}\"}} ");
        metrics.encode().unwrap().lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned))
    }

    #[test]
    fn requests_at_once_are_limited_until_one_is_done() {
        let (limit, metrics) = limit(2, 1000);
        let (first, second) = (limit.begin(), limit.begin());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(limit.begin().err(), Some(OutboundRefused::AtOnce(2)));
        assert_eq!(limit.begin().err(), Some(OutboundRefused::AtOnce(2)), "one that is refused is not under way");
        drop(first);
        let third = limit.begin();
        assert!(third.is_ok());
        assert_eq!(refusals(&metrics, "outbound-requests").as_deref(), Some("2"));
        limit.set(3, 1000);
        assert!(limit.begin().is_ok());
    }

    #[test]
    fn requests_a_second_are_limited_however_short_they_are() {
        let (limit, metrics) = limit(100, 1);
        assert!(limit.begin().is_ok());
        assert_eq!(limit.begin().err(), Some(OutboundRefused::PerSecond(1)));
        assert_eq!(refusals(&metrics, "outbound-requests-per-second").as_deref(), Some("1"));
        assert_eq!(refusals(&metrics, "outbound-requests"), None);
        limit.set(100, 1_000_000_000);
        assert!(limit.begin().is_ok());
    }
}
