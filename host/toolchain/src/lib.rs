//! Finds the compiler of a guest's crate, rustup's or Debian's, and calls it for `wasm32-unknown-unknown`.
//!
//! The host's build script uses it too, so it has no dependencies.

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The target of guests. It gives them nothing but what their WIT imports.
pub const TARGET: &str = "wasm32-unknown-unknown";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "/usr/bin/ld.lld-22";

/// Cargo's variables that a nested build keeps: where crates come from, and how many jobs may run. All others describe
/// the build that runs now, for example that `cargo clippy` called the build script.
const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_BUILD_JOBS", "CARGO_MAKEFLAGS"];
const KEPT_PREFIXES: [&str; 6] =
    ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_", "CARGO_TERM_"];

/// Variables without the prefix `CARGO` that a nested build drops too: flags and wrappers for the host's target.
const DROPPED: [&str; 5] = ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"];

/// A way to compile for [`TARGET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The target's std is installed beside rustc.
    Installed,
    /// Debian's `rustc-web`, `rust-web-src` and `lld-22`: std is built from its source, once per target directory.
    Debian,
}

impl Toolchain {
    /// The toolchain of the rustc that is in charge of `directory`, else the one of Debian's packages.
    pub fn find(directory: &Path) -> Result<Self, ToolchainError> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let printed = print(&rustc, &["target-libdir", "--target", TARGET], directory);
        if printed.as_ref().is_ok_and(|libdir| libdir.is_dir()) {
            return Ok(Self::Installed);
        }
        // Where `-Zbuild-std` looks for the source.
        let sysroot = print(OsStr::new(DEBIAN_RUSTC), &["sysroot"], directory);
        let has_source = sysroot.is_ok_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file());
        if has_source && Path::new(DEBIAN_LINKER).is_file() {
            return Ok(Self::Debian);
        }
        Err(match printed {
            Ok(_) => ToolchainError::NoTarget,
            Err(reason) => ToolchainError::NoRustc { rustc, reason },
        })
    }

    /// `cargo build` of the crate in `directory`, in the release profile, with its JSON messages on stdout.
    ///
    /// Artifacts go to `target_dir`, or where the crate's workspace keeps them.
    pub fn cargo_build(self, directory: &Path, target_dir: Option<&Path>) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        for (name, _) in env::vars_os() {
            if belongs_to_running_build(&name) {
                cargo.env_remove(name);
            }
        }
        cargo.current_dir(directory).arg("build");
        if self == Self::Debian {
            cargo
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER);
        }
        cargo.args(["--release", "--target", TARGET, "--message-format=json-render-diagnostics", "--manifest-path"]);
        cargo.arg(directory.join("Cargo.toml"));
        if let Some(target_dir) = target_dir {
            cargo.arg("--target-dir").arg(target_dir);
        }
        // Debug information is ten times as large as the code. The names of functions stay, since backtraces show them.
        cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        cargo.stdin(Stdio::null());
        cargo
    }
}

/// Why no guest can be compiled here.
#[derive(Debug)]
pub enum ToolchainError {
    NoRustc { rustc: OsString, reason: String },
    NoTarget,
}

impl fmt::Display for ToolchainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRustc { rustc, reason } => {
                write!(f, "`{}` does not run ({reason}): install Rust 1.95 or later with rustup", rustc.display())
            }
            Self::NoTarget => write!(
                f,
                "the standard library of {TARGET} is missing: get it with `rustup target add {TARGET}`, or on Debian \
                 with `apt-get install rustc-web rust-web-src lld-22`"
            ),
        }
    }
}

impl Error for ToolchainError {}

/// The path that `rustc --print` answers in `directory`, where rustup's overrides apply.
fn print(rustc: &OsStr, what: &[&str], directory: &Path) -> Result<PathBuf, String> {
    let output = Command::new(rustc)
        .arg("--print")
        .args(what)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn belongs_to_running_build(variable: &OsStr) -> bool {
    let Some(name) = variable.to_str() else { return false };
    let kept = KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    DROPPED.contains(&name) || name.starts_with("CARGO") && !kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_build_keeps_where_crates_come_from_and_drops_the_rest() {
        for kept in
            ["PATH", "CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_REGISTRIES_MINE_INDEX", "RUSTUP_TOOLCHAIN", "RUSTC"]
        {
            assert!(!belongs_to_running_build(OsStr::new(kept)), "{kept}");
        }
        for dropped in [
            "RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
        ] {
            assert!(belongs_to_running_build(OsStr::new(dropped)), "{dropped}");
        }
    }
}
