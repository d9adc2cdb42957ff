//! What a machine refuses that code needs. Its operator reads it, and no component is to blame.

use std::os::fd::AsFd;

use rustix::{
    fs::{StatVfsMountFlags, fstatvfs},
    io::Errno,
};

use crate::component::run::system;

/// Why this machine does not let the host load code. On another the same component may run.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MachineError {
    #[error(
        "there is no /proc, by which the relay starts the compiler and opens code; mount it where the relay runs: \
         mount -t proc proc /proc"
    )]
    NoProc,
    #[error(
        "the system lets no memory become executable ({0}); take MemoryDenyWriteExecute=yes out of the relay's systemd \
         unit, or what else forbids it, such as a rule of SELinux or seccomp"
    )]
    NotExecutable(Errno),
    #[error(
        "code has no place to run from: the system refuses files in memory ({refused}), and these folders do not \
         serve: {folders}; have cache in relay.toml name a folder on a file system that is not mounted noexec"
    )]
    NoPlace { refused: Errno, folders: String },
    #[error(
        "the system has no more memory or memory mappings for the relay; raise its address space (`ulimit -v`, \
         LimitAS= of systemd) or vm.max_map_count"
    )]
    NoMemory,
    #[error("the system refuses what code needs: {0}")]
    Refused(Errno),
}

impl From<Errno> for MachineError {
    fn from(refused: Errno) -> Self {
        match refused {
            // Code is opened by its descriptor alone, which is there.
            Errno::NOENT => Self::NoProc,
            Errno::ACCESS | Errno::PERM => Self::NotExecutable(refused),
            Errno::NOMEM => Self::NoMemory,
            _ => Self::Refused(refused),
        }
    }
}

impl MachineError {
    /// Why code could not be mapped, if the system has refused something. `None`: it is the code.
    pub fn of(error: &wasmtime::Error) -> Option<Self> {
        system::refusal(error).map(Self::from)
    }
}

/// Whether what is in this file or folder may not be run.
pub fn is_noexec(opened: impl AsFd) -> bool {
    fstatvfs(opened).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let said = |refused| MachineError::from(refused).to_string();
        assert!(said(Errno::NOENT).contains("mount -t proc"));
        for refused in [Errno::PERM, Errno::ACCESS] {
            assert!(said(refused).contains("MemoryDenyWriteExecute"));
        }
        assert!(said(Errno::NOMEM).contains("vm.max_map_count"));
        assert!(said(Errno::MFILE).contains("os error 24"));
        // What is wrong with the code itself is not the machine's fault.
        assert!(MachineError::of(&wasmtime::Error::msg("another engine")).is_none());
    }
}
