//! Machines that lack something: a system call, an option of sockets, `/proc`.
//!
//! A filter of seccomp(2) refuses system calls. The program gets it before it starts, and its children inherit it.
#![allow(unsafe_code)]

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::LazyLock,
};

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
use rustix::io::Errno;

use super::{process::wrapped, skip::skipped};

/// Where a filter finds the number of a system call, and the lower half of its first argument (`seccomp_data`).
const NUMBER: u32 = 0;
const ARGUMENTS: u32 = 16;
/// Bytes from one argument to the next.
const ARGUMENT: u32 = 8;

/// A system call that fails, and how.
pub struct Refusal {
    call: libc::c_long,
    /// What the call's arguments must be: the place of each, a comparison, and a value.
    arguments: Vec<(u32, u32, u32)>,
    error: Errno,
}

impl Refusal {
    pub fn pidfd_open(error: Errno) -> Self {
        Self { call: libc::SYS_pidfd_open, arguments: Vec::new(), error }
    }

    pub fn memfd_create(error: Errno) -> Self {
        Self { call: libc::SYS_memfd_create, arguments: Vec::new(), error }
    }

    /// Setting this option of TCP.
    pub fn tcp_option(option: libc::c_int, error: Errno) -> Self {
        let arguments = vec![(1, BPF_JEQ, unsigned(libc::IPPROTO_TCP)), (2, BPF_JEQ, unsigned(option))];
        Self { call: libc::SYS_setsockopt, arguments, error }
    }

    /// Making memory executable, as systemd's `MemoryDenyWriteExecute` refuses it.
    pub fn executable_memory() -> Self {
        let arguments = vec![(2, BPF_JSET, unsigned(libc::PROT_EXEC))];
        Self { call: libc::SYS_mprotect, arguments, error: Errno::PERM }
    }

    /// The part of a filter that is about this call. What is another call comes to its end.
    fn instructions(&self) -> Vec<sock_filter> {
        let number = (NUMBER, BPF_JEQ, u32::try_from(self.call).unwrap());
        let arguments = self.arguments.iter().map(|(place, comparison, value)| {
            let at = ARGUMENTS + place * ARGUMENT;
            (at, *comparison, *value)
        });
        let tests: Vec<_> = [number].into_iter().chain(arguments).collect();
        let length = 2 * tests.len() + 1;
        let mut part = Vec::new();
        for (at, comparison, value) in tests {
            part.push(instruction(BPF_LD | BPF_W | BPF_ABS, at, 0));
            part.push(instruction(BPF_JMP | comparison | BPF_K, value, length - part.len() - 1));
        }
        let error = libc::SECCOMP_RET_ERRNO | unsigned(self.error.raw_os_error());
        part.push(instruction(BPF_RET | BPF_K, error, 0));
        part
    }
}

/// An instruction, which goes over the next `otherwise` ones if it is a comparison that fails.
fn instruction(code: u32, value: u32, otherwise: usize) -> sock_filter {
    let (code, otherwise) = (u16::try_from(code).unwrap(), u8::try_from(otherwise).unwrap());
    sock_filter { code, jt: 0, jf: otherwise, k: value }
}

fn unsigned(value: libc::c_int) -> u32 {
    u32::try_from(value).unwrap()
}

/// Whether a program may have system calls refused here. The test is skipped if not.
pub fn can_refuse() -> Option<()> {
    static CAN: LazyLock<bool> =
        LazyLock::new(|| refusing(Command::new("true"), &[]).status().is_ok_and(|status| status.success()));
    if *CAN { Some(()) } else { skipped("a system with seccomp") }
}

/// The same command on a machine that refuses these system calls.
pub fn refusing(mut command: Command, refusals: &[Refusal]) -> Command {
    let mut filter: Vec<_> = refusals.iter().flat_map(Refusal::instructions).collect();
    filter.push(instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    let length = u16::try_from(filter.len()).unwrap();
    let install = move || {
        let program = sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
        let (one, zero): (libc::c_ulong, libc::c_ulong) = (1, 0);
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the filter lives until the call returns, and the kernel only reads it.
        let installed = unsafe {
            // Without it, only root may have a filter.
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) == 0
        };
        if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec this makes two system calls, and takes no memory and no lock.
    unsafe { command.pre_exec(install) };
    command
}

/// The same command where there is no `/proc`. The right to run `unshare -m` is needed ([`super::hosts::can_be_set`]).
pub fn without_proc(command: &Command) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", "mount -t tmpfs tmpfs /proc && exec \"$0\" \"$@\""]).stdin(Stdio::null());
    wrapped(unshare, command)
}
