//! The machine that the figures were measured on.

use std::{fs, process::Command, thread};

/// A paragraph: machine, date, commit.
pub fn description(runs: usize) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let changes =
        if said(&["git", "status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { ", changed" };
    let medians = match runs {
        1 => "One run".to_owned(),
        _ => format!("Medians of {runs} runs, the servers in turn; in brackets the lowest and highest"),
    };
    format!(
        "{date}, commit {commit}{changes}: {cpu}, {cores} cores shared by server, feed and clients, Linux {kernel}. \
         {medians}. CPU is the server's own, user and system, from `/proc`; × is the ratio to the bare server in the same \
         turn.\n",
        date = said(&["date", "--utc", "+%F"]),
        commit = said(&["git", "rev-parse", "--short", "HEAD"]),
        cpu = cpu.unwrap_or("a processor without a name"),
        kernel = kernel.trim(),
    )
}

/// The output of a program. Empty if there is no such program.
fn said(command: &[&str]) -> String {
    let Some((program, arguments)) = command.split_first() else { return String::new() };
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
