//! Decides which of a tenant's upstreams go on when it changes, and which begin anew.

use std::sync::Arc;

use config::{TenantConfig, UpstreamConfig};

use crate::{
    channel::Channels,
    component::LiveFilter,
    shutdown::{Stop, Trigger},
    tenants::TenantCode,
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
pub enum Planned {
    /// Nothing about its connection has changed.
    Kept(RunningUpstream),
    New {
        config: UpstreamConfig,
        handle: Arc<Handle>,
        /// Set once the upstream whose place it takes has ended.
        before: Option<Stop>,
    },
}

impl Planned {
    /// Plans all upstreams of a tenant. A filter says what is sent first on a connection, so an upstream begins anew
    /// when a filter comes or goes.
    pub fn all(
        config: &TenantConfig,
        code: &TenantCode,
        channels: &Channels,
        mut before: Vec<RunningUpstream>,
    ) -> Vec<Self> {
        let filtered = code.filter.is_some();
        let plan = |config: &UpstreamConfig| {
            let at = before.iter().position(|running| running.config.name == config.name);
            let running = at.map(|at| before.swap_remove(at));
            match running {
                Some(running) if running.config == *config && running.filter.is_some() == filtered => {
                    Self::Kept(running)
                }
                running => {
                    let demand = config.linger.map(|_| Arc::clone(&channels.demand));
                    let handle = Arc::new(Handle::new(Arc::clone(&config.name), demand));
                    Self::New { config: config.clone(), handle, before: running.map(|running| running.ended) }
                }
            }
        };
        config.upstreams.iter().map(plan).collect()
    }

    pub fn handle(&self) -> Arc<Handle> {
        match self {
            Self::Kept(kept) => Arc::clone(&kept.handle),
            Self::New { handle, .. } => Arc::clone(handle),
        }
    }
}
