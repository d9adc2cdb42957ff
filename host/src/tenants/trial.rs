//! The last that a changed tenant must pass before it runs, its manifest and code being loaded: a trial instance of each
//! component.

use std::{path::Path, sync::Arc};

use config::{HostLimits, TenantConfig};

use crate::{
    component::{Guest, Role, RoleCode},
    delivery::{Shards, Timing},
    metrics::Metrics,
    tenant::{HostPlaces, Tenant},
    tenants::TenantCode,
};

/// Makes an instance of each component, and drops it. They run in a tenant that is there for the trial alone, so that
/// whatever their start-up code does reaches nobody.
pub async fn trial(config: &TenantConfig, code: &TenantCode) -> Result<(), Vec<String>> {
    let (tenant, metrics) = scratch(config).map_err(|error| vec![format!("no trial can be made: {error}")])?;
    let mut trial = Trial { tenant: &tenant, metrics: &metrics, problems: Vec::new() };
    trial.of(config.filter.as_deref(), code.filter.as_deref()).await;
    trial.of(config.client.as_deref(), code.client.as_deref()).await;
    trial.of(config.api.as_ref().map(|api| api.file.as_path()), code.api.as_deref()).await;
    trial.of(config.job.as_deref(), code.job.as_deref()).await;
    if trial.problems.is_empty() { Ok(()) } else { Err(trial.problems) }
}

struct Trial<'t> {
    tenant: &'t Arc<Tenant>,
    metrics: &'t Arc<Metrics>,
    problems: Vec<String>,
}

impl Trial<'_> {
    async fn of<R: Role>(&mut self, path: Option<&Path>, code: Option<&RoleCode<R>>) {
        let Some((path, code)) = path.zip(code) else { return };
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
            self.problems.push(format!("{}: components.{}: a trial of it fails: {broken}", path.display(), R::KIND));
        }
    }
}

/// The tenant as if nothing else were there, and nothing to be written anywhere.
fn scratch(config: &TenantConfig) -> std::io::Result<(Arc<Tenant>, Arc<Metrics>)> {
    let HostLimits { ping_interval, stall_timeout, shutdown_timeout, .. } = HostLimits::default();
    // Nobody is there.
    let shards = Shards::start(0, Timing { ping_interval, stall_timeout, shutdown_timeout })?;
    let metrics = Arc::new(Metrics::new());
    let places = HostPlaces::new(1);
    let config = &TenantConfig { grants: Arc::new(config.grants.read_only()), ..config.clone() };
    Ok((Tenant::new(config, &metrics, &Arc::new(shards), &Arc::default(), &places), metrics))
}
