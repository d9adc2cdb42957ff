//! Compiles the sample filter, which `edge-relay demo` carries in its own binary.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

#[path = "src/component/toolchain.rs"]
mod toolchain;

use toolchain::{TARGET, Toolchain};

const FILTER: &str = "../components/market/filter";

fn main() -> ExitCode {
    let inputs = ["../components/market/filter/src", "../components/market/filter/Cargo.toml", "../wit"];
    for input in inputs.iter().chain(&["../Cargo.toml", "../Cargo.lock", "src/component/toolchain.rs"]) {
        println!("cargo::rerun-if-changed={input}");
    }
    match build_filter() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error=the sample filter {FILTER} was not built: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the filter's core module in `OUT_DIR/market-filter.wasm`.
fn build_filter() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run it through cargo")?);
    let guests = target_dir(&out).join("guests");
    let filter = fs::canonicalize(FILTER)?;
    // Cargo reads instructions from this script's stdout; it shows stderr when the script fails.
    let status = Toolchain::find(&filter)?.cargo_build(&filter, Some(&guests)).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("cargo build: {status}").into());
    }
    fs::copy(guests.join(TARGET).join("release/market_filter.wasm"), out.join("market-filter.wasm"))?;
    Ok(())
}

/// The target directory that `out` lies in, shared by every profile: cargo marks it as a cache.
fn target_dir(out: &Path) -> &Path {
    out.ancestors().find(|ancestor| ancestor.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}
