//! Why a changed tenant is not taken into service.

use std::{io, path::PathBuf, sync::Arc};

use config::{Problems, TenantConfig, meet};
use tokio::task::JoinError;

use crate::{
    component::EngineError,
    store,
    tenants::{
        code::{CodeProblem, listed},
        trial::TrialError,
    },
};

#[derive(Debug, thiserror::Error)]
pub enum TenantRefusal {
    #[error("it cannot be checked: {0}")]
    Unchecked(#[from] EngineError),
    #[error(transparent)]
    Manifest(#[from] Problems),
    #[error("{}", listed(.0, "; "))]
    Code(Vec<CodeProblem>),
    #[error("no trial can be made: {0}")]
    NoTrial(io::Error),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Store(#[from] store::Unusable),
    #[error("the guests' threads do not start: {0}")]
    Threads(#[from] io::Error),
    /// A panic of the host's own code, in a task of the check.
    #[error(transparent)]
    Task(#[from] JoinError),
    /// A panic of the host's own code, in the check itself.
    #[error("the check of it panicked")]
    Panicked,
}

/// Most bytes of a reason that are logged, and shown at `/readyz`: fifty long mistakes.
const MAX_REASON: usize = 32 << 10;

impl TenantRefusal {
    /// Whether it may pass without a change of the tenant's files: another try is worth it after a while. What takes
    /// much to find out, such as a compilation's time, is not tried again.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Manifest(_) | Self::Store(_) | Self::Threads(_) | Self::Unchecked(_) | Self::NoTrial(_) => true,
            Self::Code(problems) => problems.iter().all(CodeProblem::may_pass),
            Self::Conflict(_) | Self::Task(_) | Self::Panicked => false,
        }
    }

    /// The reason, cut if it is very long: its author decides how long it is.
    pub fn reason(&self) -> String {
        let mut reason = self.to_string();
        if reason.len() > MAX_REASON {
            reason.truncate(reason.floor_char_boundary(MAX_REASON));
            reason.push('…');
            reason.shrink_to_fit();
        }
        reason
    }
}

impl From<Vec<CodeProblem>> for TenantRefusal {
    fn from(problems: Vec<CodeProblem>) -> Self {
        Self::Code(problems)
    }
}

impl From<TrialError> for TenantRefusal {
    fn from(error: TrialError) -> Self {
        match error {
            TrialError::Host(error) => Self::NoTrial(error),
            TrialError::Components(problems) => Self::Code(problems),
        }
    }
}

/// What a tenant claims although another has it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("the name {name} is also that of the tenant in {}; give each its own", .other.display())]
    Name { name: Arc<str>, other: PathBuf },
    #[error("the path {path} meets {taken}, that of the tenant in {}; give each its own", .other.display())]
    Path { path: String, taken: String, other: PathBuf },
    #[error(
        "its folder is, with links followed, {}, where the guests of the tenant in {} have a folder; move one of \
         them away",
        .folder.display(), .other.display()
    )]
    Granted { folder: PathBuf, other: PathBuf },
}

impl Conflict {
    /// Finds what two tenants both claim. A tenant does not conflict with an earlier version of itself.
    pub fn find(new: &TenantConfig, other: &TenantConfig) -> Option<Self> {
        if new.folder == other.folder {
            return None;
        }
        if let Some(folder) = new.folder_granted_to(other) {
            return Some(Self::Granted { folder: folder.into(), other: other.folder.clone() });
        }
        if new.name == other.name {
            return Some(Self::Name { name: Arc::clone(&new.name), other: other.folder.clone() });
        }
        let hosts_meet = match (new.hosts.is_empty(), other.hosts.is_empty()) {
            (true, true) => true,
            (false, false) => new.hosts.iter().any(|host| other.hosts.contains(host)),
            _ => false,
        };
        let path = || Self::Path { path: new.path.clone(), taken: other.path.clone(), other: other.folder.clone() };
        (hosts_meet && meet(&new.path, &other.path)).then(path)
    }
}
