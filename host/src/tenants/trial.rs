//! The last check of a changed tenant before it runs: a trial instance of each component.

use std::{io, path::Path, sync::Arc};

use config::{HostLimits, TenantConfig};

use crate::{
    component::{Guest, Role, RoleCode},
    delivery::{Shards, Timing},
    metrics::Metrics,
    tenant::{HostPlaces, HostResources, ProcessLimits, Tenant, Turns},
    tenants::{
        TenantCode,
        code::{CodeProblem, listed},
    },
};

/// Why a tenant has not passed its trial.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error("no trial can be made: {0}")]
    Host(#[from] io::Error),
    /// Every component that failed, each on a line of its own.
    #[error("{}", listed(.0, "\n"))]
    Components(Vec<CodeProblem>),
}

/// Makes an instance of each component, and drops it. They run in a tenant that exists for the trial alone, so that
/// their start-up code reaches nobody. `turns`: those of all trials.
pub async fn trial(config: &TenantConfig, code: &TenantCode, turns: &Turns) -> Result<(), TrialError> {
    let (tenant, metrics) = scratch(config, turns)?;
    let mut trial = Trial { tenant: &tenant, metrics: &metrics, problems: Vec::new() };
    trial.run(config.dial.as_deref(), code.dial.as_deref()).await;
    trial.run(config.filter.as_deref(), code.filter.as_deref()).await;
    trial.run(config.client.as_deref(), code.client.as_deref()).await;
    trial.run(config.api.as_ref().map(|api| api.file.as_path()), code.api.as_deref()).await;
    trial.run(config.job.as_deref(), code.job.as_deref()).await;
    if trial.problems.is_empty() { Ok(()) } else { Err(TrialError::Components(trial.problems)) }
}

struct Trial<'t> {
    tenant: &'t Arc<Tenant>,
    metrics: &'t Arc<Metrics>,
    problems: Vec<CodeProblem>,
}

impl Trial<'_> {
    async fn run<R: Role>(&mut self, file: Option<&Path>, code: Option<&RoleCode<R>>) {
        let Some((file, code)) = file.zip(code) else { return };
        let name: Arc<str> = R::KIND.name().into();
        let guest = Guest {
            tenant: Arc::clone(self.tenant),
            version: self.tenant.version(),
            role: R::KIND,
            metrics: self.metrics.guest(&self.tenant.name, R::KIND.name(), &name),
            name,
        };
        let place = guest.tenant.places.take().await;
        if let Err(broken) = code.instantiate(&guest, place).await {
            self.problems.push(CodeProblem { file: file.into(), role: R::KIND, error: broken.into() });
        }
    }
}

/// A tenant with nothing beside it, which can write nowhere.
fn scratch(config: &TenantConfig, turns: &Turns) -> io::Result<(Arc<Tenant>, Arc<Metrics>)> {
    let HostLimits { ping_interval, stall_timeout, .. } = HostLimits::default();
    let metrics = Arc::new(Metrics::new());
    let host = HostResources {
        metrics: Arc::clone(&metrics),
        // It has no clients.
        shards: Arc::new(Shards::start(0, Timing { ping_interval, stall_timeout })?),
        clients: Arc::default(),
        places: HostPlaces::new(1),
        process: ProcessLimits::of_process(),
        dialer: Arc::default(),
        turns: Some(turns.clone()),
    };
    let config = &TenantConfig { grants: Arc::new(config.grants.read_only()), ..config.clone() };
    Ok((Tenant::new(config, &host), metrics))
}
