//! What a tenant must pass before it runs: its manifest, its components' sizes, roles, imports and code, and a trial
//! instance of each.

use std::sync::Arc;

use crate::{
    client::{Shards, Timing},
    component::{Code as RoleCode, Engine, Guest, Role},
    config::{HostLimits, TenantConfig},
    metrics::Metrics,
    tenant::{Code, Tenant},
};

/// Checks a tenant's components; an error says which file and why.
pub async fn check(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Code, String> {
    let code = Code::load(config, engine)?;
    trial(config, &code).await?;
    Ok(code)
}

/// Makes an instance of each component, and drops it. They run in a tenant that is there for the trial alone, so that
/// whatever their start-up code does reaches nobody.
pub async fn trial(config: &TenantConfig, code: &Code) -> Result<(), String> {
    let (tenant, metrics) = scratch(config).map_err(|error| format!("no trial can be made: {error}"))?;
    let trial = Trial { tenant: &tenant, metrics: &metrics };
    trial.of(code.filter.as_deref()).await?;
    trial.of(code.client.as_deref()).await?;
    trial.of(code.api.as_deref()).await?;
    trial.of(code.job.as_deref()).await
}

struct Trial<'t> {
    tenant: &'t Arc<Tenant>,
    metrics: &'t Arc<Metrics>,
}

impl Trial<'_> {
    async fn of<R: Role>(&self, code: Option<&RoleCode<R>>) -> Result<(), String> {
        let Some(code) = code else { return Ok(()) };
        let name: Arc<str> = R::NAME.into();
        let guest = Guest {
            tenant: Arc::clone(self.tenant),
            version: self.tenant.version(),
            role: R::NAME,
            metrics: self.metrics.guest(&self.tenant.name, R::NAME, &name),
            name,
        };
        let made = code.instantiate(&guest).await;
        made.map(drop).map_err(|broken| format!("components.{}: a trial of it fails: {broken}", R::NAME))
    }
}

/// The tenant as if nothing else were there, and nothing to be written anywhere.
fn scratch(config: &TenantConfig) -> std::io::Result<(Arc<Tenant>, Arc<Metrics>)> {
    let HostLimits { ping_interval, stall_timeout, shutdown_timeout, .. } = HostLimits::default();
    // Nobody is there.
    let shards = Shards::start(0, Timing { ping_interval, stall_timeout, shutdown_timeout })?;
    let metrics = Arc::new(Metrics::new());
    let config = &TenantConfig { grants: Arc::new(config.grants.read_only()), ..config.clone() };
    Ok((Tenant::new(config, &metrics, &Arc::new(shards), &Arc::default()), metrics))
}
