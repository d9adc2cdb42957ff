//! Reading a configuration file.

use std::{fs::File, io, io::Read, path::Path};

use crate::{document::Problem, units::show_size};

/// The largest configuration file that is read, in bytes: a hundred times the longest sensible one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a configuration file, which must be a regular file of UTF-8 within [`MAX_FILE_BYTES`].
pub(super) fn read_file(file: &Path) -> Result<String, Problem> {
    let problem = |line, message| Problem { file: file.into(), line, key: String::new(), message };
    let unreadable =
        |error: io::Error| problem(None, format!("cannot be read ({error}); check the path and its rights"));
    // Checked before the file is opened: opening a pipe would wait for its other end.
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(problem(None, "is not a file; write the settings in a regular file".into()));
    }
    let mut bytes = Vec::new();
    File::open(file).and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
        return Err(problem(None, format!("is larger than {}; make it smaller", show_size(MAX_FILE_BYTES))));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        problem(Some(line), "is not UTF-8; save the file as UTF-8".into())
    })
}
