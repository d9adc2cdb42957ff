//! Reading a configuration file.

use std::{fs::File, io, io::Read, path::Path};

use crate::{
    document::Problem,
    held::{OpenError, open_file},
    units::show_size,
};

/// The largest configuration file that is read, in bytes: a hundred times the longest sensible one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the operator's configuration file, wherever the path leads.
pub(super) fn read_file(file: &Path) -> Result<String, Problem> {
    read_opened(file, open_file(file))
}

/// The problem with a file that cannot be read.
pub(super) fn unreadable(file: &Path, error: &io::Error) -> Problem {
    let message = format!("cannot be read ({error}); check the path and its rights");
    Problem { file: file.into(), line: None, key: String::new(), message }
}

/// Reads a configuration file, which must be a regular file of UTF-8 within [`MAX_FILE_BYTES`].
pub(super) fn read_opened(file: &Path, opened: Result<File, OpenError>) -> Result<String, Problem> {
    let problem = |line, message| Problem { file: file.into(), line, key: String::new(), message };
    let opened = opened.map_err(|error| match error {
        OpenError::NotAFile => problem(None, "is not a file; write the settings in a regular file".into()),
        OpenError::LeadsOut => {
            problem(None, "is a link that leads out of the tenant's folder; put the file itself there".into())
        }
        OpenError::Io(error) => unreadable(file, &error),
    })?;
    let mut bytes = Vec::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(file, &error))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
        return Err(problem(None, format!("is larger than {}; make it smaller", show_size(MAX_FILE_BYTES))));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        problem(Some(line), "is not UTF-8; save the file as UTF-8".into())
    })
}
