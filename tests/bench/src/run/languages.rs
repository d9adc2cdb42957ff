//! The sample tenant's components in each language, built as the samples say.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::place::Place;
use crate::failure::{Context, Failure};

/// Relative to the repository's root.
const RUST: &str = "components/market";
const JAVASCRIPT: &str = "components/javascript";
const PYTHON: &str = "components/python";
const WIT: &str = "wit/edge-relay-tenant@0.1.0";
/// The world of `wit/edge-relay-tenant@0.1.0` that has every role.
const WORLD: &str = "tenant-component";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    Rust,
    JavaScript,
    Python,
}

/// Roles, each with the file that has it.
pub type Components = Vec<(&'static str, PathBuf)>;

impl Language {
    pub const ALL: [Self; 3] = [Self::Rust, Self::JavaScript, Self::Python];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::JavaScript => "JavaScript",
            Self::Python => "Python",
        }
    }

    /// The components for filter, client handler and API, built once per run.
    pub fn components(self, place: &Place) -> Result<Components, Failure> {
        const ROLES: [&str; 3] = ["filter", "client", "api"];
        match self {
            Self::Rust => ROLES.into_iter().map(|role| Ok((role, place.build(&format!("{RUST}/{role}"))?))).collect(),
            Self::JavaScript | Self::Python => {
                let file = place.scratch.join(format!("{}.wasm", self.name()));
                if !file.exists() {
                    self.build(&file, place)?;
                }
                Ok(ROLES.map(|role| (role, file.clone())).to_vec())
            }
        }
    }

    fn build(self, file: &Path, place: &Place) -> Result<(), Failure> {
        let tools = env::var_os("LANGUAGE_TOOLS").map(PathBuf::from).context("LANGUAGE_TOOLS is not set")?;
        let wit = Path::new(WIT).canonicalize().context(WIT)?;
        let mut command = match self {
            Self::Rust => return Err(Failure::new("Rust has a crate for each role")),
            Self::JavaScript => {
                let packages = tools.join("javascript/node_modules");
                let folder = copied(JAVASCRIPT, self.name(), place)?;
                symlink(&packages, folder.join("node_modules")).context(packages.display())?;
                let mut command = Command::new("node");
                command.current_dir(folder).arg("build.js").arg(wit).args([WORLD, "src/app.js"]).arg(file);
                command
            }
            Self::Python => {
                let tools = tools.join("python");
                let mut command = Command::new(tools.join("bin/componentize-py"));
                command.current_dir(copied(PYTHON, self.name(), place)?).env("PYTHONPATH", tools);
                command
                    .arg("--wit-path")
                    .arg(wit)
                    .args(["--world", WORLD, "componentize", "app", "--output"])
                    .arg(file);
                command
            }
        };
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
        let built = (output.status.success() && file.exists()).then_some(());
        built.with_context(|| String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned())
    }
}

/// Copies a folder, since toolchains leave files behind.
fn copied(from: &str, name: &str, place: &Place) -> Result<PathBuf, Failure> {
    let to = place.scratch.join(name);
    copy(Path::new(from), &to)?;
    Ok(to)
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).context(to.display())?;
    for entry in fs::read_dir(from).context(from.display())?.flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        // Packages that a developer has installed there are not needed.
        if path.is_dir() && entry.file_name() != "node_modules" {
            copy(&path, &to)?;
        } else if path.is_file() {
            fs::copy(&path, &to).context(path.display())?;
        }
    }
    Ok(())
}
