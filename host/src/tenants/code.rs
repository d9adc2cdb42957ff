//! A tenant's code: its components, each in its role.

use std::{path::Path, sync::Arc};

use config::TenantConfig;

use crate::{
    component,
    component::{ApiCode, ClientCode, Engine, FilterCode, JobCode, Role},
};

/// A tenant's code, checked and compiled: nothing of it runs yet.
#[derive(Clone, Default)]
pub struct TenantCode {
    pub filter: Option<Arc<FilterCode>>,
    pub client: Option<Arc<ClientCode>>,
    pub api: Option<Arc<ApiCode>>,
    pub job: Option<Arc<JobCode>>,
}

impl TenantCode {
    /// Whether any component appends records or reads them.
    pub fn keeps_records(&self) -> bool {
        self.filter.as_ref().is_some_and(|code| code.keeps_records)
            || self.client.as_ref().is_some_and(|code| code.keeps_records)
            || self.api.as_ref().is_some_and(|code| code.keeps_records)
            || self.job.as_ref().is_some_and(|code| code.keeps_records)
    }

    /// Loads what the manifest names, which blocks while something is compiled; or all that is wrong with it, which file
    /// and why.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let code = Self {
            filter: load_role(config.filter.as_deref(), engine, &mut problems),
            client: load_role(config.client.as_deref(), engine, &mut problems),
            api: load_role(config.api.as_ref().map(|api| api.file.as_path()), engine, &mut problems),
            job: load_role(config.job.as_deref(), engine, &mut problems),
        };
        if problems.is_empty() { Ok(code) } else { Err(problems) }
    }
}

/// Loads the component for one role.
fn load_role<R: Role>(
    path: Option<&Path>,
    engine: &Arc<Engine>,
    problems: &mut Vec<String>,
) -> Option<Arc<component::RoleCode<R>>> {
    let path = path?;
    let code = engine.load(path).and_then(|loaded| component::RoleCode::new(engine, loaded));
    code.map(Arc::new)
        .map_err(|error| problems.push(format!("{}: components.{}: {error}", path.display(), R::KIND)))
        .ok()
}
