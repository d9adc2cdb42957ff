//! `edge-relay component`: builds and checks components.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use crate::{
    command::{Failure, announce, host},
    component::{LoadedCode, RoleKind, build, load::inspect::Report},
    progress::with_bar,
    telemetry,
};

/// Builds a tenant's component, or tells what one offers and needs.
#[derive(Args)]
#[command(arg_required_else_help = true)]
pub struct Component {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Makes a component from a Rust crate or a core module.
    ///
    /// A crate is compiled for wasm32-unknown-unknown first. A file that is a component already is copied. Exit code 2:
    /// the source cannot be built, or the target's standard library is missing.
    #[command(after_help = "\
Examples:
  edge-relay component build components/market/filter -o tenants/market/filter.wasm
  edge-relay component build module.wasm")]
    Build {
        /// A crate's folder, or a .wasm file.
        #[arg(value_name = "SOURCE")]
        source: PathBuf,
        /// The component to write; by default beside the source.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prints a component's roles, imports and size, and what it may ask for in a manifest.
    ///
    /// Exit code 2: the file is no component, has no role, or imports what the host does not provide.
    #[command(after_help = "\
Examples:
  edge-relay component check tenants/market/filter.wasm
  edge-relay component check tenants/market/filter.wasm --config relay.toml")]
    Check {
        #[arg(value_name = "FILE")]
        component: PathBuf,
        /// The configuration of the host that the component is for: its limits hold, and its cache of compiled code is
        /// used. Without it compiled code is kept in the user's own cache.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

impl Component {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start(telemetry::OF_CHECKS).map_err(Failure::usage)?;
        match self.action {
            Action::Build { source, output } => {
                let written = build::build(&source, output.as_deref()).map_err(Failure::usage)?;
                check(&written, None)
            }
            Action::Check { component, config } => check(&component, config.as_deref()),
        }
    }
}

/// `config`: that of the host that the component is for.
fn check(path: &Path, config: Option<&Path>) -> Result<(), Failure> {
    let problem = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let (mut engine, _) = host::checked(config)?;
    let engine = engine.get().map_err(|error| Failure::failed(format!("{error:#}")))?;
    let opened = config::open_file(path).map_err(io::Error::from);
    let loaded = with_bar("loading components", 1, |_| engine.load(path, opened));
    let loaded = loaded.map_err(|error| problem(error.to_string()))?;
    let (size, report) = (loaded.size, &loaded.report);
    let list = |items: &[String]| if items.is_empty() { "none".into() } else { items.join("\n           ") };
    let roles = shown_roles(report);
    announce(&format!(
        "component: {}\nsize:      {size} bytes\n\
         memory:    code {} KiB, an instance {} KiB besides its linear memory\n\
         roles:     {}\nimports:   {}\nmay ask:   {}",
        path.display(),
        loaded.bytes().div_ceil(1 << 10),
        loaded.shape().instance_bytes().div_ceil(1 << 10),
        list(&roles),
        list(&report.imports),
        list(&report.grants)
    ))?;
    loaded.linked().map_err(|error| problem(error.to_string()))?;
    if roles.is_empty() {
        return Err(problem(format!("it has no role; its exports are: {}", list(&report.exports))));
    }
    Ok(())
}

/// A component's roles, each with its optional parts.
pub fn shown_roles(report: &Report) -> Vec<String> {
    let role = |role: &RoleKind| match role {
        RoleKind::Filter if report.follows_demand => format!("{role}, follows demand"),
        RoleKind::Client if report.leases => format!("{role}, lets clients in for a time"),
        role => role.to_string(),
    };
    report.roles.iter().map(role).collect()
}
