//! Values that `relay.toml` takes from the host's environment or from a file.

use std::path::{Path, PathBuf};

use crate::{
    document::{Value, quote},
    secrets::Source,
};

/// Reads `{ env = "VARIABLE" }` or `{ file = "PATH" }`. A relative path is relative to `folder`. `wanted` says what may
/// be written. Problems do not repeat the value.
pub(super) fn secret(
    value: Value<'_>,
    folder: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    wanted: &str,
) -> Option<String> {
    secret_from(value, folder, secrets, wanted).map(|(secret, _)| secret)
}

/// Reads the same, and says which file it is from.
pub(super) fn secret_from(
    value: Value<'_>,
    folder: &Path,
    secrets: &dyn Fn(&str) -> Option<String>,
    wanted: &str,
) -> Option<(String, Option<PathBuf>)> {
    match Source::read(value, wanted)? {
        Source::Env(variable) => {
            let name = variable.str()?;
            let found = secrets(name);
            if found.is_none() {
                variable.problem(format!("{} is not in the host's environment; set it", quote(name)));
            }
            found.map(|secret| (secret, None))
        }
        Source::File(file) => {
            let name = file.str()?;
            let path = folder.join(name);
            let read = std::fs::read_to_string(&path);
            let read = read.map_err(|error| file.problem(format!("{} cannot be read ({error})", quote(name)))).ok();
            read.map(|secret| (secret, Some(path)))
        }
    }
}
