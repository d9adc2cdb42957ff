//! The upstreams of a tenant's next version: those that go on, and those that are to begin.

use std::sync::Arc;

use config::{TenantConfig, UpstreamConfig};

use crate::{
    component::LiveFilter,
    metrics::Metrics,
    shutdown::{Stop, Trigger},
    tenant::Tenant,
    tenants::plan::{Change, Plan},
    upstream::Handle,
};

/// An upstream, and what ends it.
pub struct RunningUpstream {
    pub config: UpstreamConfig,
    pub handle: Arc<Handle>,
    /// `None`: its messages go to channel `main` unfiltered.
    pub filter: Option<Arc<LiveFilter>>,
    /// Ends the upstream when it is dropped.
    pub _stop: Trigger,
    /// Set once it has ended and its filter has done what was left.
    pub ended: Stop,
}

/// An upstream of a version that is about to run.
pub enum NextUpstream {
    Kept(RunningUpstream),
    New {
        config: UpstreamConfig,
        handle: Arc<Handle>,
        /// Set once the upstream whose place it takes has ended.
        before: Option<Stop>,
    },
}

impl NextUpstream {
    /// Carries out a plan, as far as that can be done before the new version runs. Upstreams that are to be removed or
    /// changed are told to end.
    pub fn all(
        plan: &Plan,
        now: &TenantConfig,
        tenant: &Tenant,
        metrics: &Arc<Metrics>,
        mut before: Vec<RunningUpstream>,
    ) -> Vec<Self> {
        let next = |config: &UpstreamConfig| {
            let at = before.iter().position(|running| running.config.name == config.name);
            let running = at.map(|at| before.swap_remove(at));
            match (plan.upstreams.get(&config.name), running) {
                (Some(Change::Keep), Some(running)) => Self::Kept(running),
                (_, running) => {
                    let (name, account) = (Arc::clone(&config.name), Arc::clone(&tenant.account));
                    let metrics = Arc::new(metrics.upstream(&tenant.name, &name));
                    let before = running.as_ref().map(|running| &*running.handle);
                    let handle = Arc::new(Handle::new(name, config.data_timeout, before, metrics, account));
                    Self::New { config: config.clone(), handle, before: running.map(|running| running.ended) }
                }
            }
        };
        now.upstreams.iter().map(next).collect()
    }

    pub fn handle(&self) -> Arc<Handle> {
        match self {
            Self::Kept(kept) => Arc::clone(&kept.handle),
            Self::New { handle, .. } => Arc::clone(handle),
        }
    }
}
