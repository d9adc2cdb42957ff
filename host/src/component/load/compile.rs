//! Compiles components, each in a child process that is killed when it goes over its limits.
//!
//! A component's bytes go in, a file with its machine code comes out, which nobody can change any more. The author of a
//! component decides how much time and memory its compilation costs: a small file can ask for hours and gigabytes. So
//! it happens in a process of its own. This is the same program again, with an empty environment, one thread, and
//! limits that it sets itself before it reads a byte ([`child`]). The component, the code and the child's messages are
//! files without a name ([`super::nameless`]), so there are no pipes to be served, and the child reads the very bytes
//! whose hash is known. This module holds the deadline and the number of children.
//!
//! The limits bound what a compilation costs. They are no sandbox: an attacker who takes over the compiler decides what
//! the code is, and the host runs that code.

use std::{
    fs::File,
    io,
    io::{Read, Seek, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use crate::{
    component::load::{
        machine::MachineError,
        nameless::{Nameless, seal},
        trusted::Trusted,
    },
    metrics::CodeMetrics,
    sync::{Condvar, Mutex},
};

pub mod child;

/// Most children at once. Each has one thread and is `nice`, so that even a relay on two cores gets its own work done.
pub const AT_ONCE: usize = 2;
/// Largest code accepted, in bytes. The child cannot write longer files. A Python component of 18 MB compiles to 36 MB.
const MAX_CODE: u64 = 512 << 20;
/// How many bytes of a child's error output are kept.
const MAX_SAID: u64 = 2 << 10;
/// Time between two looks at a child whose end the system does not announce.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What the standard library prints before it aborts for want of memory.
const NO_MEMORY: &str = "memory allocation of ";

/// Why a component is not compiled. The tenant's developer reads it, and the operator.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    #[error("does not compile: {0}")]
    Invalid(String),
    #[error("takes longer than {0:?} to compile; make it smaller, or raise limits.compile-time in relay.toml")]
    Time(Duration),
    #[error(
        "takes more than {} MiB of memory to compile; make it smaller, or raise limits.compile-memory in relay.toml",
        .0 >> 20
    )]
    Memory(u64),
    #[error("compiles to more than {} MiB of code; make it smaller", MAX_CODE >> 20)]
    Size,
    /// The kernel does this when the machine, or the relay's cgroup, has no memory left.
    #[error("is not compiled: the compiler was killed, most likely because the machine ran out of memory")]
    Killed,
    #[error("is not compiled: the compiler ended early ({status}) {said}")]
    Died { status: ExitStatus, said: String },
    #[error("is not compiled: the compiler could not run: {0}")]
    Run(String),
    #[error("is compiled, but its code cannot be used: {0}")]
    Unusable(String),
    #[error("is not loaded: {0}")]
    Machine(#[from] MachineError),
}

impl CompileError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Time(_) => "time",
            Self::Memory(_) => "memory",
            Self::Size => "size",
            Self::Killed => "killed",
            Self::Died { .. } => "died",
            Self::Run(_) | Self::Unusable(_) | Self::Machine(_) => "host",
        }
    }

    /// Whether the same bytes would be refused again.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::Time(_) | Self::Memory(_) | Self::Size)
    }
}

impl From<io::Error> for CompileError {
    fn from(error: io::Error) -> Self {
        Self::Run(error.to_string())
    }
}

/// Starts children, and waits for them.
pub struct Compiler {
    /// Most bytes of a child's address space.
    memory: u64,
    /// How long a child may take.
    time: Duration,
    files: Nameless,
    slots: Slots,
}

impl Compiler {
    /// `cache`: the folder for compiled code.
    pub fn new(memory: u64, time: Duration, cache: Option<&Path>) -> Self {
        Self { memory, time, files: Nameless::new(cache), slots: Slots::new() }
    }

    /// Compiles a component. Blocks its thread until there is a slot, and then until the child has ended.
    pub fn compile(&self, component: &[u8], metrics: &CodeMetrics) -> Result<Trusted, CompileError> {
        let _slot = self.slots.take();
        let started = Instant::now();
        let code = self.run(component);
        metrics.seconds.observe(started.elapsed().as_secs_f64());
        code
    }

    fn run(&self, component: &[u8]) -> Result<Trusted, CompileError> {
        let mut input = self.files.create("component")?;
        input.write_all(component)?;
        input.rewind()?;
        let (code, said) = (self.files.create("code")?, self.files.create("said")?);
        let seconds = self.time.as_secs().saturating_add(1);
        let child = Command::new("/proc/self/exe")
            .arg("compile")
            .arg(format!("--memory={}", self.memory))
            .arg(format!("--seconds={seconds}"))
            .arg(format!("--size={MAX_CODE}"))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(code.try_clone()?))
            .stderr(Stdio::from(said.try_clone()?))
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CompileError::Machine(MachineError::NoProc),
                _ => CompileError::from(error),
            })?;
        let ended = ChildGuard(child).wait(Instant::now() + self.time)?;
        let status = ended.ok_or(CompileError::Time(self.time))?;
        if !status.success() {
            return Err(self.blame(status, last_words(said)?));
        }
        // The child has ended, so there is no other handle on the file. Sealed, it cannot change any more.
        seal(&code)?;
        Ok(Trusted::vouched(code))
    }

    /// Copies code to a sealed file, from which it may run.
    pub fn copy(&self, code: &Trusted) -> Result<Trusted, CompileError> {
        let mut copy = self.files.create("code")?;
        let mut from = code.file();
        from.rewind()?;
        io::copy(&mut from, &mut copy)?;
        seal(&copy)?;
        Ok(Trusted::vouched(copy))
    }

    /// Finds out why a child has failed.
    fn blame(&self, status: ExitStatus, said: String) -> CompileError {
        let killed_by = |signal: Signal| status.signal() == Some(signal.as_raw());
        if status.code() == Some(i32::from(child::REFUSED)) {
            CompileError::Invalid(said)
        } else if status.code() == Some(i32::from(child::NO_MEMORY))
            || killed_by(Signal::ABORT) && said.contains(NO_MEMORY)
        {
            CompileError::Memory(self.memory)
        } else if killed_by(Signal::XCPU) {
            CompileError::Time(self.time)
        } else if killed_by(Signal::XFSZ) {
            CompileError::Size
        } else if killed_by(Signal::KILL) {
            CompileError::Killed
        } else {
            CompileError::Died { status, said }
        }
    }
}

/// A running child. Dropping this kills it.
struct ChildGuard(Child);

impl ChildGuard {
    /// Waits for the child to end. `None`: the deadline came first.
    fn wait(mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        // Sandboxes and old kernels have none. Then the child is looked at again and again.
        let ends = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).ok();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let Some(ends) = &ends else {
                thread::sleep(left.min(LOOK_AGAIN));
                continue;
            };
            // The conversion cannot fail: the setting's longest time is far below a `Timespec`'s.
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(ends, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // For a child that has been waited for both fail, which does no harm.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child's error output, on one line.
fn last_words(mut said: File) -> io::Result<String> {
    said.rewind()?;
    let mut bytes = Vec::new();
    said.take(MAX_SAID).read_to_end(&mut bytes)?;
    // Parts of it may come from the component. Without control characters it cannot steer a terminal.
    let text = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Bounds how many compile at once.
struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to compile, given back when it is dropped.
struct CompileSlot<'s>(&'s Slots);

impl Slots {
    fn new() -> Self {
        Self { free: Mutex::new(AT_ONCE), freed: Condvar::default() }
    }

    fn take(&self) -> CompileSlot<'_> {
        let free = self.free.lock();
        let mut free = self.freed.wait_while(free, |free| *free == 0);
        *free -= 1;
        CompileSlot(self)
    }
}

impl Drop for CompileSlot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_childs_end_says_which_side_is_to_blame() {
        let compiler = Compiler::new(1 << 30, Duration::from_secs(1), None);
        let blame = |raw, said: &str| compiler.blame(ExitStatus::from_raw(raw), said.into()).reason();
        let exited = |code: u8| i32::from(code) << 8;
        assert_eq!(blame(exited(child::REFUSED), "unexpected end"), "invalid");
        assert_eq!(blame(exited(child::NO_MEMORY), ""), "memory");
        assert_eq!(blame(Signal::ABORT.as_raw(), "memory allocation of 8 bytes failed"), "memory");
        assert_eq!(blame(Signal::ABORT.as_raw(), "thread panicked"), "died");
        assert_eq!(blame(Signal::XCPU.as_raw(), ""), "time");
        assert_eq!(blame(Signal::XFSZ.as_raw(), ""), "size");
        assert_eq!(blame(Signal::KILL.as_raw(), ""), "killed");
        assert_eq!(blame(Signal::SEGV.as_raw(), ""), "died");
        assert_eq!(blame(exited(1), "edge-relay: no standard input"), "died");
    }

    #[test]
    fn a_childs_last_words_are_one_short_line() {
        let files = Nameless::new(None);
        let mut said = files.create("said").unwrap();
        said.write_all(b"it\n\x1b[2J  broke\r\n").unwrap();
        assert_eq!(last_words(said).unwrap(), "it [2J broke");
        let mut said = files.create("said").unwrap();
        said.write_all(&[b'x'; 10_000]).unwrap();
        assert_eq!(last_words(said).unwrap().len() as u64, MAX_SAID);
    }
}
