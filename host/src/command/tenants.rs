//! `edge-relay tenants`: checks tenants before a host runs them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use config::{Bounds, TenantConfig, TenantsFolder};

use crate::{
    command::{Failure, announce, component::shown_roles, host, io_runtime},
    component::EngineSource,
    telemetry,
    tenant::Turns,
    tenants::{load_all, trial},
};

/// Checks tenants like a host that is about to take them into service.
#[derive(Args)]
#[command(arg_required_else_help = true)]
pub struct Tenants {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Checks the tenant in a folder, or every tenant in a folder of tenants.
    ///
    /// It checks the manifests, with their secrets from the environment, and the components: their sizes, roles and
    /// imports, that they compile within the host's limits, and that an instance of each can be made. Prints what each
    /// tenant consists of. Exit code 2: something is wrong. All mistakes are listed, of one manifest at most fifty.
    #[command(after_help = "\
Examples:
  edge-relay tenants check tenants
  edge-relay tenants check tenants/market --config relay.toml")]
    Check {
        /// A folder that has a tenant.toml in it, or one that has such folders in it.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// The configuration of the host that the tenants are for: its limits and its grants hold, and its cache of
        /// compiled code is used. Without it compiled code is kept in the user's own cache.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

impl Tenants {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start(telemetry::OF_CHECKS).map_err(Failure::usage)?;
        let Action::Check { folder, config } = self.action;
        let (mut engine, bounds) = host::checked(config.as_deref())?;
        check(&folder, &bounds, &mut engine)
    }
}

fn check(folder: &Path, bounds: &Bounds, engine: &mut EngineSource) -> Result<(), Failure> {
    let found = TenantsFolder::at(folder, bounds).map_err(|problem| Failure::usage(problem.to_string()))?;
    let mut problems: Vec<String> = found.problems().map(ToString::to_string).collect();
    for passed_over in &found.passed_over {
        announce(&passed_over.to_string())?;
    }
    let tenants = found.configs;
    let engine = engine.get().map_err(|error| Failure::failed(format!("{error:#}")))?;
    // Trials need deadlines, but no sockets.
    let (runtime, turns) = (io_runtime()?, Turns::of_trials());
    for (config, code) in tenants.iter().zip(load_all(&tenants, engine)) {
        announce(&format!("tenant: {}", config.name))?;
        for file in files(config) {
            // A component that does not load is among the problems.
            let Ok(loaded) = engine.load(file, config.open(file)) else { continue };
            let roles = shown_roles(&loaded.report).join(", ");
            let name = file.strip_prefix(&config.folder).unwrap_or(file).display();
            announce(&format!(
                "  {name}: {} bytes; roles: {}",
                loaded.size,
                if roles.is_empty() { "none" } else { &roles }
            ))?;
        }
        match code {
            Ok(code) => {
                problems.extend(runtime.block_on(trial(config, &code, &turns)).err().map(|error| error.to_string()))
            }
            Err(found) => problems.extend(found.iter().map(ToString::to_string)),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::usage(problems.join("\n"))) }
}

/// The tenant's component files, each once.
fn files(config: &TenantConfig) -> BTreeSet<&Path> {
    config.components().map(|(_, file)| file).collect()
}
