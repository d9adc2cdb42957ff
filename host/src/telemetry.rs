//! The host's log: lines on standard error.

use std::{io::IsTerminal, str::FromStr};

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// The variable that chooses what is logged: a level, or `target=level` pairs with commas between them.
const VARIABLE: &str = "EDGE_RELAY_LOG";

/// Starts logging. `fallback` holds unless the environment says otherwise.
pub fn start(fallback: &str) -> Result<(), String> {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| fallback.to_owned());
    let targets = Targets::from_str(&wanted)
        .map_err(|error| format!("{VARIABLE}={wanted}: {error}; write for example {VARIABLE}=info"))?;
    // It warns each time that a guest does something wrong, without a limit.
    let targets = targets.with_target("wasmtime_wasi_http", LevelFilter::OFF);
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
    tracing_subscriber::registry().with(lines).with(targets).try_init().map_err(|error| error.to_string())
}
