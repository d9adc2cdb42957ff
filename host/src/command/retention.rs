//! `edge-relay retention`: whether old records are deleted.

use std::path::PathBuf;

use clap::Args;
use config;

use crate::{
    command::{Failure, announce},
    store,
    store::{clock, clock::Clock},
    telemetry,
};

/// Shows whether old records are deleted, or confirms that the host's clock is right.
///
/// A clock that is more than a day past the time when the store was last used deletes nothing until the host has run for
/// 24 hours: the clock may be wrong, or the host was off. If it is right, say so here. The host may run meanwhile; it
/// goes on within a second.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay retention --config relay.toml --status
  edge-relay retention --config relay.toml --confirm")]
pub struct Retention {
    /// The host's configuration, which names the store.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    what: What,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Tells whether old records are deleted.
    #[arg(long)]
    status: bool,
    /// Confirms that the clock of this machine is right.
    #[arg(long)]
    confirm: bool,
}

impl Retention {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("warn").map_err(Failure::usage)?;
        let config = config::load_host(&self.config, store::parse_mysql_url)
            .map_err(|problems| Failure::usage(problems.to_string()))?;
        let Some(store) = config.store else { return Err(Failure::usage("the configuration has no store")) };
        let path = store.file.display();
        if !store.file.exists() {
            return Err(Failure::failed(format!("{path}: there is no such store yet")));
        }
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{path}: {error}"));
        let file = store::open_file(&store).map_err(|error| failed(&error))?;
        if self.what.confirm {
            let trusted = Clock { seen: Some(store::now()), doubt: 0 };
            clock::write(&file, trusted).map_err(|error| failed(&error))?;
        }
        let Clock { doubt, .. } = clock::read(&file).map_err(|error| failed(&error))?;
        match doubt.div_ceil(60_000) {
            0 => announce("old records are deleted"),
            minutes => {
                announce(&format!("the clock is in doubt: old records are kept for {minutes} more minutes of running"))
            }
        }
    }
}
