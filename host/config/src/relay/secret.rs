//! Values that `relay.toml` takes from the host's environment or from a file.

use std::path::Path;

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
    match Source::read(value, wanted)? {
        Source::Env(variable) => {
            let name = variable.str()?;
            let found = secrets(name);
            if found.is_none() {
                variable.problem(format!("{} is not in the host's environment; set it", quote(name)));
            }
            found
        }
        Source::File(file) => {
            let name = file.str()?;
            let read = std::fs::read_to_string(folder.join(name));
            read.map_err(|error| file.problem(format!("{} cannot be read ({error})", quote(name)))).ok()
        }
    }
}
