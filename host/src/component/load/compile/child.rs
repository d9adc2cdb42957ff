//! The child's side of compiling: `edge-relay compile`, which only the host starts.

use std::{
    io,
    io::{Read, Write},
};

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};
use wasmtime::error::OutOfMemory;

use crate::component::load::engine;

/// Exit code: the component is at fault. Standard error says how.
pub const REFUSED: u8 = 3;
/// Exit code: there was not enough memory.
pub const NO_MEMORY: u8 = 4;

/// How much the child yields to the relay when both want a processor (`nice`).
const NICENESS: i32 = 10;
/// The highest score there is: when memory runs short, the kernel ends the child and not the relay.
const OOM_SCORE: &str = "1000";

/// The most that the child may take: bytes of memory, seconds of processor time, bytes of a file.
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
    #[error("cannot set its limits; the relay's own (`ulimit -v -t -f`) may be lower: {0}")]
    Limits(io::Error),
}

/// Compiles the component on standard input, and writes its code to standard output, within the limits.
pub fn run(limits: &ChildLimits) -> Result<(), ChildError> {
    limit(limits).map_err(ChildError::Limits)?;
    let mut component = Vec::new();
    io::stdin().lock().read_to_end(&mut component).map_err(|error| match error.kind() {
        io::ErrorKind::OutOfMemory => ChildError::NoMemory(error.to_string()),
        _ => ChildError::Io(error),
    })?;
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
    // At the first of the two comes a signal that names the reason, at the second the kill.
    let (current, maximum) = (Some(limits.seconds), Some(limits.seconds.saturating_add(1)));
    setrlimit(Resource::Cpu, Rlimit { current, maximum })?;
    // The system may refuse what follows. None of it is needed.
    // The kernel sends this signal when the thread that waits for this child ends. So the child ends with the relay,
    // however that ends. Without it, it ends when its time is over.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = nice(NICENESS);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(())
}
