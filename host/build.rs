//! Compiles the sample tenant, which `edge-relay demo` carries in its own binary. Has the linker compress the line
//! tables of a release.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use toolchain::{TARGET, Toolchain};

const MARKET: &str = "../components/market";
/// The sample's components. The folder `x` has the crate `market-x`.
const COMPONENTS: [&str; 4] = ["filter", "client", "api", "job"];

fn main() -> ExitCode {
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|set| set == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        // Line tables and names for backtraces take more room than the code. They are read only after a panic.
        println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
    }
    for input in ["../wit", "../Cargo.toml", "../Cargo.lock", "toolchain/src/lib.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }
    for component in COMPONENTS {
        println!("cargo::rerun-if-changed={MARKET}/{component}/src");
        println!("cargo::rerun-if-changed={MARKET}/{component}/Cargo.toml");
        if let Err(error) = build(component) {
            println!("cargo::error=the sample {MARKET}/{component} was not built: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Leaves a component's core module in `OUT_DIR/market-COMPONENT.wasm`.
fn build(component: &str) -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run it through cargo")?);
    let guests = target_dir(&out).join("guests");
    let source = fs::canonicalize(Path::new(MARKET).join(component))?;
    // Cargo reads instructions from this script's stdout; it shows stderr when the script fails.
    let status = Toolchain::find(&source)?.cargo_build(&source, Some(&guests)).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("cargo build: {status}").into());
    }
    let built = guests.join(TARGET).join(format!("release/market_{component}.wasm"));
    fs::copy(built, out.join(format!("market-{component}.wasm")))?;
    Ok(())
}

/// The target directory that `out` lies in, which every profile shares. Cargo marks it as a cache.
fn target_dir(out: &Path) -> &Path {
    out.ancestors().find(|ancestor| ancestor.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}
