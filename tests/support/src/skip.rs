//! Tests that cannot run, because this machine lacks something.
//!
//! libtest has no way for a running test to say that it cannot run: the test returns, and libtest prints `ok`. So such
//! a test says it here. `tests/run`, which is `make test`, counts these tests as skipped and not as passed. A harness
//! of another kind could do that too. But each test would have to be registered with it by hand, and no maintained one
//! captures the output of tests.

use std::{
    env,
    fs::File,
    io::{Write, stderr},
    thread,
};

/// Says that the calling test cannot run because `what` is missing. The test then returns.
///
/// A line goes to the file in `EDGE_RELAY_SKIPPED`, or to stderr if the variable is not set. It does not go through
/// libtest, which hides the output of tests that pass.
pub fn skipped<T>(what: &str) -> Option<T> {
    // libtest names the thread of each test after the test.
    let thread = thread::current();
    let test = thread.name().expect("a test is skipped by its own thread, which has its name");
    let binary = env::current_exe().unwrap();
    // The file's name ends in a hash.
    let binary = binary.file_name().unwrap().to_str().unwrap().split('-').next().unwrap();
    let line = format!("SKIPPED (machine) {binary} {test}: {what} is missing\n");
    match env::var_os("EDGE_RELAY_SKIPPED") {
        // Written in one call, because other tests write there too.
        Some(file) => File::options().append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap(),
        None => stderr().write_all(line.as_bytes()).unwrap(),
    }
    None
}

/// Whether a program with this name is in `PATH`.
pub fn there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Says that the test needs a program with this name. The test is skipped without it.
pub fn need(program: &str) -> Option<()> {
    if there(program) { Some(()) } else { skipped(program) }
}
