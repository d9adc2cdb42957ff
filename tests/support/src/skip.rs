//! Tests that cannot run, for want of something on this machine.
//!
//! libtest knows no test that finds out while it runs that it cannot: it returns, and libtest says `ok`. So a test that
//! returns for that reason says so here. `tests/run`, which is `make test`, takes these tests off those that passed and
//! counts them by themselves. A harness of another kind could do so too, but would have to have all tests handed to it,
//! and not one that is kept up captures what they print.

use std::{
    env,
    fs::File,
    io::{Write, stderr},
    thread,
};

/// Says that the test that calls this does not run, for want of `what`; for it to return.
///
/// A line of its own goes to the file in `EDGE_RELAY_SKIPPED`, or else to stderr: not by way of libtest, which keeps
/// what a test that passes prints.
pub fn skipped<T>(what: &str) -> Option<T> {
    // libtest names each test's thread after it.
    let thread = thread::current();
    let test = thread.name().expect("a test is skipped by its own thread, which has its name");
    let binary = env::current_exe().unwrap();
    // Behind the name there is a hash.
    let binary = binary.file_name().unwrap().to_str().unwrap().split('-').next().unwrap();
    let line = format!("SKIPPED (machine) {binary} {test}: {what} is not there\n");
    match env::var_os("EDGE_RELAY_SKIPPED") {
        // In one piece, since others write there too.
        Some(file) => File::options().append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap(),
        None => stderr().write_all(line.as_bytes()).unwrap(),
    }
    None
}

/// A program of this name is in `PATH`.
pub fn there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The test needs a program of this name, and is skipped without it.
pub fn need(program: &str) -> Option<()> {
    if there(program) { Some(()) } else { skipped(program) }
}
