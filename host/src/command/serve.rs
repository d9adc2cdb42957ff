//! `edge-relay serve`: runs the deployed host.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use config;

use crate::{
    command::{Failure, announce, io_runtime},
    relay,
    relay::{Relay, Strictness},
    shutdown,
    shutdown::on_signals,
    store, telemetry,
};

/// Runs every tenant of a relay.toml.
///
/// Prints `listening clients=ADDR api=ADDR admin=ADDR` once it is ready, and logs to standard error. At SIGTERM /readyz
/// fails, and after `shutdown-notice` it tells its clients and ends, within `shutdown-timeout`. At SIGINT, and at a
/// second SIGTERM, it does so without notice; one more signal ends it at once. EDGE_RELAY_LOG sets the log's level
/// (default: info). Exit code 2: relay.toml has mistakes. All of them are printed, and nothing has been opened. A
/// tenant with mistakes is refused, in the log and at /readyz, and the others are served; with --strict it is exit code
/// 2, too.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay serve --config relay.toml
  edge-relay serve --config relay.toml --strict
  EDGE_RELAY_LOG=debug edge-relay serve --config relay.toml")]
pub struct Serve {
    /// The host's configuration; its tenants are folders beside it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Does not start if any tenant has mistakes.
    #[arg(long)]
    strict: bool,
}

impl Serve {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("info").map_err(Failure::usage)?;
        // From the first moment on: where this is process 1, a signal that nobody takes is lost.
        let ((leave, leaving), (trigger, stop)) = (shutdown::stop(), shutdown::stop());
        let signals = on_signals(leave, trigger).map_err(Failure::failed)?;
        let strictness = if self.strict { Strictness::Strict } else { Strictness::Lenient };
        let mistaken = |invalid: config::Invalid| {
            // One run reports every mistake, so the components are checked too.
            let components = relay::check_components(&invalid.sound);
            Failure::usage(components.map_or_else(|error| format!("{invalid}\n{error}"), |()| invalid.to_string()))
        };
        let config = config::load(&self.config, store::parse_mysql_url).map_err(mistaken)?;
        if let Some(invalid) = config::Invalid::strictly(&config).filter(|_| self.strict) {
            return Err(mistaken(invalid));
        }
        let runtime = io_runtime()?;
        let entered = runtime.enter();
        let notice = config.limits.shutdown_notice;
        let relay = Relay::bind(config, strictness)?;
        signals.serve(notice);
        let also = |name: &str, address: Option<SocketAddr>| {
            address.map(|address| format!(" {name}={address}")).unwrap_or_default()
        };
        let (api, admin) = (also("api", relay.api), also("admin", relay.admin));
        announce(&format!("listening clients={}{api}{admin}", relay.clients))?;
        runtime.block_on(relay.run(leaving, stop));
        drop(entered);
        // A component may still be compiling, perhaps for minutes. The child process ends with this one.
        runtime.shutdown_background();
        Ok(())
    }
}
