//! The child's side of compiling: `edge-relay compile`, which the host starts and nobody else.

use std::{
    io,
    io::{Read, Write},
};

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use wasmtime::error::OutOfMemory;

use crate::component::load::engine;

/// Exit code: the component is at fault, and standard error says how.
pub const REFUSED: u8 = 3;
/// Exit code: there was not enough memory.
pub const NO_MEMORY: u8 = 4;

/// How far it stands behind the relay for a processor's time.
const NICENESS: i32 = 10;
/// Before all others: the kernel, short of memory, ends this and not the relay.
const OOM_SCORE: &str = "1000";

/// Most that the child takes: bytes of memory, seconds of a processor, bytes of a file.
pub struct ChildLimits {
    pub memory: u64,
    pub seconds: u64,
    pub size: u64,
}

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NoMemory(String),
}

/// Compiles what standard input has to standard output, within the limits.
pub fn run(limits: &ChildLimits) -> Result<(), ChildError> {
    limit(limits)?;
    let mut component = Vec::new();
    io::stdin().lock().read_to_end(&mut component)?;
    let code = wasmtime::Engine::new(&engine::config()).and_then(|engine| engine.precompile_component(&component));
    let code = code.map_err(|error| {
        let why = format!("{error:#}");
        if error.is::<OutOfMemory>() || why.contains("os error 12") {
            ChildError::NoMemory(why)
        } else {
            ChildError::Refused(why)
        }
    })?;
    let mut out = io::stdout().lock();
    out.write_all(&code)?;
    Ok(out.flush()?)
}

fn limit(limits: &ChildLimits) -> io::Result<()> {
    let both = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Core, both(0))?;
    setrlimit(Resource::As, both(limits.memory))?;
    setrlimit(Resource::Fsize, both(limits.size))?;
    // At the first a signal that says so, then the end.
    let (current, maximum) = (Some(limits.seconds), Some(limits.seconds.saturating_add(1)));
    setrlimit(Resource::Cpu, Rlimit { current, maximum })?;
    // Of the thread that waits for it: it goes with the relay, however that ends.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // What the system may refuse is not needed.
    let _ = nice(NICENESS);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(())
}
