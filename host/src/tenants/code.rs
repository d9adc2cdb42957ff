//! A tenant's code: its components, each in its role.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use config::TenantConfig;

use crate::component::{ApiCode, Broken, ClientCode, Engine, FilterCode, JobCode, LoadError, Role, RoleCode, RoleKind};

/// A tenant's code, checked and compiled. Nothing of it runs yet.
#[derive(Clone, Default)]
pub struct TenantCode {
    pub filter: Option<Arc<FilterCode>>,
    pub client: Option<Arc<ClientCode>>,
    pub api: Option<Arc<ApiCode>>,
    pub job: Option<Arc<JobCode>>,
}

/// A component of a tenant that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: components.{role}: {error}", .file.display())]
pub struct CodeProblem {
    pub file: PathBuf,
    pub role: RoleKind,
    pub error: CodeError,
}

/// What is wrong with a component.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("a trial of it fails: {0}")]
    Trial(#[from] Broken),
}

impl CodeProblem {
    /// Whether it may pass although the file stays the same.
    pub fn may_pass(&self) -> bool {
        match &self.error {
            CodeError::Load(LoadError::Read(_)) => true,
            CodeError::Load(LoadError::Compile(error)) => !error.is_lasting(),
            CodeError::Load(_) | CodeError::Trial(_) => false,
        }
    }
}

/// The problems as text, with a separator between them.
pub fn listed(problems: &[CodeProblem], separator: &str) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

impl TenantCode {
    /// Whether any component appends records or reads them.
    pub fn keeps_records(&self) -> bool {
        self.filter.as_ref().is_some_and(|code| code.keeps_records)
            || self.client.as_ref().is_some_and(|code| code.keeps_records)
            || self.api.as_ref().is_some_and(|code| code.keeps_records)
            || self.job.as_ref().is_some_and(|code| code.keeps_records)
    }

    /// Loads what the manifest names, and finds all that is wrong with it. This blocks while something is compiled.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>) -> Result<Self, Vec<CodeProblem>> {
        let mut problems = Vec::new();
        let code = Self {
            filter: load_role(config, config.filter.as_deref(), engine, &mut problems),
            client: load_role(config, config.client.as_deref(), engine, &mut problems),
            api: load_role(config, config.api.as_ref().map(|api| api.file.as_path()), engine, &mut problems),
            job: load_role(config, config.job.as_deref(), engine, &mut problems),
        };
        if problems.is_empty() { Ok(code) } else { Err(problems) }
    }
}

/// Loads the component for one role.
fn load_role<R: Role>(
    config: &TenantConfig,
    file: Option<&Path>,
    engine: &Arc<Engine>,
    problems: &mut Vec<CodeProblem>,
) -> Option<Arc<RoleCode<R>>> {
    let file = file?;
    let code = engine.load(file, config.open(file)).and_then(|loaded| engine.role_code(loaded));
    code.map(Arc::new)
        .map_err(|error| problems.push(CodeProblem { file: file.into(), role: R::KIND, error: error.into() }))
        .ok()
}
