//! A tenant's code: its components, each in its role.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::TenantConfig;

use crate::{
    account::{Charge, Part},
    component::{
        ApiCode, Broken, ClientCode, DialCode, Engine, FilterCode, JobCode, LoadError, LoadedCode, Role, RoleCode,
        RoleKind, load::file::FileError,
    },
    progress::Progress,
    tenant::{CodeCharge, CodeCharges, Tenant},
};

/// A tenant's code, checked and compiled. Nothing of it runs yet.
#[derive(Clone, Default)]
pub struct TenantCode {
    pub dial: Option<Arc<DialCode>>,
    pub filter: Option<Arc<FilterCode>>,
    pub client: Option<Arc<ClientCode>>,
    pub api: Option<Arc<ApiCode>>,
    pub job: Option<Arc<JobCode>>,
}

/// What was loaded, and for which role.
type LoadedRole<'c> = (RoleKind, &'c Arc<dyn LoadedCode>);

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
    #[error(
        "takes {} KiB of memory, with the tenant's other components; memory-total allows {} KiB: make them smaller, or \
         raise limits.memory-total",
        .needed >> 10, .most >> 10
    )]
    Memory { needed: usize, most: usize },
}

impl CodeProblem {
    /// Whether it may pass although the file stays the same.
    pub fn may_pass(&self) -> bool {
        match &self.error {
            CodeError::Load(LoadError::File(FileError::Read(_))) => true,
            CodeError::Load(LoadError::Compile(error)) => !error.is_lasting(),
            CodeError::Trial(Broken::HostMemory) => true,
            CodeError::Load(_) | CodeError::Trial(_) | CodeError::Memory { .. } => false,
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
        self.dial.as_ref().is_some_and(|code| code.keeps_records)
            || self.filter.as_ref().is_some_and(|code| code.keeps_records)
            || self.client.as_ref().is_some_and(|code| code.keeps_records)
            || self.api.as_ref().is_some_and(|code| code.keeps_records)
            || self.job.as_ref().is_some_and(|code| code.keeps_records)
    }

    /// Loads what the manifest names, and finds all that is wrong with it. This blocks while something is compiled.
    /// Each component is a step of the progress.
    pub fn load(config: &TenantConfig, engine: &Arc<Engine>, progress: &Progress) -> Result<Self, Vec<CodeProblem>> {
        let mut loading = Loading { config, engine, progress, problems: Vec::new() };
        let code = Self {
            dial: loading.role(config.dial.as_deref()),
            filter: loading.role(config.filter.as_deref()),
            client: loading.role(config.client.as_deref()),
            api: loading.role(config.api.as_ref().map(|api| api.file.as_path())),
            job: loading.role(config.job.as_deref()),
        };
        let mut problems = loading.problems;
        let (needed, most) = (code.bytes(), config.limits.memory_total);
        if needed > most
            && let Some((file, role)) = code.largest(config)
        {
            problems.push(CodeProblem { file, role, error: CodeError::Memory { needed, most } });
        }
        if problems.is_empty() { Ok(code) } else { Err(problems) }
    }

    /// Bytes of memory that the code takes. A component in several roles counts once.
    pub fn bytes(&self) -> usize {
        self.loaded().values().map(|(_, loaded)| loaded.bytes()).sum()
    }

    /// What the code takes of a tenant's memory. What the version before has charged for the same code is shared; other
    /// code of that version counts until its last call has ended.
    pub fn charges(&self, tenant: &Tenant) -> CodeCharges {
        let before = tenant.version();
        let charge = |(address, (_, loaded)): (usize, LoadedRole<'_>)| {
            let charged = before.code.get(&address).cloned().unwrap_or_else(|| {
                let mut charge = Charge::new(&tenant.account, Part::Code);
                // It is loaded already.
                charge.add(loaded.bytes());
                CodeCharge::new(charge, Arc::<dyn LoadedCode>::clone(loaded))
            });
            (address, charged)
        };
        self.loaded().into_iter().map(charge).collect()
    }

    /// The component that takes most of that, and one of its roles.
    fn largest(&self, config: &TenantConfig) -> Option<(PathBuf, RoleKind)> {
        let (role, _) = self.loaded().into_values().max_by_key(|(_, loaded)| loaded.bytes())?;
        let file = match role {
            RoleKind::Dial => config.dial.clone(),
            RoleKind::Filter => config.filter.clone(),
            RoleKind::Client => config.client.clone(),
            RoleKind::Api => config.api.as_ref().map(|api| api.file.clone()),
            RoleKind::Job => config.job.clone(),
        };
        Some((file?, role))
    }

    /// What was loaded, each content once, by its address.
    fn loaded(&self) -> HashMap<usize, LoadedRole<'_>> {
        fn of<R: Role>(code: Option<&Arc<RoleCode<R>>>) -> Option<(usize, LoadedRole<'_>)> {
            let loaded = &code?.loaded;
            Some((Arc::as_ptr(loaded).addr(), (R::KIND, loaded)))
        }
        let for_upstreams = [of(self.dial.as_ref()), of(self.filter.as_ref())];
        let others = [of(self.client.as_ref()), of(self.api.as_ref()), of(self.job.as_ref())];
        for_upstreams.into_iter().chain(others).flatten().collect()
    }
}

/// A tenant's code while it is loaded, role by role.
struct Loading<'l> {
    config: &'l TenantConfig,
    engine: &'l Arc<Engine>,
    progress: &'l Progress,
    problems: Vec<CodeProblem>,
}

impl Loading<'_> {
    /// Loads the component for one role.
    fn role<R: Role>(&mut self, file: Option<&Path>) -> Option<Arc<RoleCode<R>>> {
        let file = file?;
        let code = self.engine.load(file, self.config.open(file)).and_then(|loaded| self.engine.role_code(loaded));
        self.progress.step();
        code.map(Arc::new)
            .map_err(|error| self.problems.push(CodeProblem { file: file.into(), role: R::KIND, error: error.into() }))
            .ok()
    }
}
