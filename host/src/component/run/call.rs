//! One call of a guest, within its deadline.

use std::{fmt::Write as _, time::Duration};

use tokio::time::timeout;
use wasmtime::{WasmBacktrace, component::ResourceTableError};

use crate::{
    component::run::{host::MAX_HANDLES, output::line, system::is_out_of_memory, ticker::Ticker},
    metrics::Blame,
    tenant::turns::TurnShare,
};

/// Frames of a trap's backtrace that are shown.
const MAX_FRAMES: usize = 8;

/// What wasmtime says when the component model's tables are full.
const HANDLES_FULL: &str = "store handle limit exceeded";

/// How a guest's call failed. Its instance must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("{0}")]
    Trap(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("cannot be instantiated: {0}")]
    Instantiate(String),
    #[error("holds more than {MAX_HANDLES} handles: drop those that are no longer needed")]
    Handles,
    #[error("no memory for an instance: the tenant has all that memory-total allows")]
    Memory,
    #[error("no room for an instance: the tenant's instances have as many memory mappings as they may")]
    Mappings,
    #[error(
        "the system has no more memory or memory mappings for the relay; raise its address space (`ulimit -v`, \
         LimitAS= of systemd) or vm.max_map_count, or lower limits.instances in relay.toml"
    )]
    HostMemory,
    #[error("no place for an instance within {} ms: the tenant, or the host, has as many as it may", .0.as_millis())]
    Busy(Duration),
}

impl Broken {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Trap(_) | Self::Handles => "trap",
            Self::Deadline(_) => "deadline",
            Self::Instantiate(_) => "instantiate",
            Self::Busy(_) => "busy",
            Self::Memory | Self::Mappings => "memory",
            Self::HostMemory => "host_memory",
        }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Busy(_) | Self::Memory | Self::Mappings | Self::HostMemory => Blame::HostFailed,
            _ => Blame::GuestBroke,
        }
    }

    /// Adds what the guest wrote to its standard error. For an exception that nobody caught, the trap alone says only
    /// that the guest gave up.
    pub fn saying(self, words: &str) -> Self {
        match self {
            Self::Trap(why) if !words.is_empty() => Self::Trap(format!("{why}, having written: {}", line(words))),
            broken => broken,
        }
    }
}

/// Runs a call, in its tenant's turns, to its end or its deadline. Host calls count. Returns how long it took, too.
pub async fn within<T>(
    deadline: Duration,
    ticker: &Ticker,
    share: &TurnShare,
    call: impl Future<Output = wasmtime::Result<T>>,
) -> Result<(T, Duration), Broken> {
    let _calling = ticker.calling();
    match timeout(deadline, share.take(call)).await {
        Ok((Ok(value), time)) => Ok((value, time)),
        Ok((Err(error), _)) if is_out_of_memory(&error) => Err(Broken::HostMemory),
        Ok((Err(error), _)) => match error.root_cause().downcast_ref() {
            Some(ResourceTableError::Full) => Err(Broken::Handles),
            _ if error.root_cause().to_string().contains(HANDLES_FULL) => Err(Broken::Handles),
            _ => Err(Broken::Trap(describe(&error))),
        },
        Err(_) => Err(Broken::Deadline(deadline)),
    }
}

/// Describes the cause, and the functions it happened in, innermost first.
fn describe(error: &wasmtime::Error) -> String {
    let mut text = error.root_cause().to_string();
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let names = frames.iter().filter_map(|frame| frame.func_name()).take(MAX_FRAMES);
    for (index, name) in names.enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{:#}", if index == 0 { " in " } else { " < " }, rustc_demangle::demangle(name));
    }
    // The guest chooses its functions' names, so they are cleaned as its other text.
    line(&text)
}
