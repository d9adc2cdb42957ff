//! A clock that a test sets while a program runs: Debian's libfaketime stands between the program and the system.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{skip::skipped, tenant::Folder};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// The file in the relay's folder that says how far ahead the clock is.
const FILE: &str = "clock";

/// The variables of a program whose clock is set by [`set`]. The test is skipped where that cannot be.
///
/// Only the time of day is: what is measured with the monotonic clock goes on.
pub fn variables(folder: &Folder) -> Option<Vec<(&'static str, String)>> {
    if !Path::new(LIBRARY).is_file() {
        return skipped("libfaketime");
    }
    set(folder, 0);
    Some(vec![
        ("LD_PRELOAD", LIBRARY.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file(folder).display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

/// Sets the clock this many days ahead.
pub fn set(folder: &Folder, days: i64) {
    // The file is never half written.
    let new = folder.path("clock.new");
    fs::write(&new, format!("{days:+}d")).unwrap();
    fs::rename(new, file(folder)).unwrap();
}

fn file(folder: &Folder) -> PathBuf {
    folder.path(FILE)
}
