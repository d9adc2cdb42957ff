//! The paths of everything that a run needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use crate::failure::{Context, Failure};

/// The sample filter's source, from the repository's root.
const FILTER: &str = "components/market/filter";

pub struct Place {
    bench: PathBuf,
    pub relay: PathBuf,
    /// The folder that `.ci/setup bench` installs into.
    tools: Option<PathBuf>,
    /// A folder for this run alone, removed at its end.
    pub scratch: PathBuf,
}

impl Place {
    pub fn new(bench: PathBuf, relay: PathBuf, tools: Option<PathBuf>) -> Result<Self, Failure> {
        let relay = relay.canonicalize().context(relay.display())?;
        let scratch = std::env::temp_dir().join(format!("edge-relay-bench-{}", process::id()));
        fs::create_dir_all(&scratch).context(scratch.display())?;
        Ok(Self { bench, relay, tools, scratch })
    }

    /// This program with a command.
    pub fn own(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.bench);
        command.args(arguments);
        command
    }

    pub fn tool(&self, path: &str) -> Result<PathBuf, Failure> {
        let tools = self.tools.as_ref().context("BENCH_TOOLS is not set")?;
        let path = tools.join(path);
        path.exists().then_some(()).with_context(|| format!("{} is missing", path.display()))?;
        Ok(path)
    }

    /// Bun's path, which depends on npm's name for the machine.
    pub fn bun(&self) -> Result<PathBuf, Failure> {
        let architecture = if cfg!(target_arch = "x86_64") { "x64" } else { std::env::consts::ARCH };
        self.tool(&format!("node_modules/@oven/bun-linux-{architecture}/bin/bun"))
    }

    /// Writes a server's file into this run's folder, and makes the folders above it.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.scratch.join(name);
        fs::create_dir_all(path.parent().context("a file without a folder")?).context(path.display())?;
        fs::write(&path, text).context(path.display())?;
        Ok(path)
    }

    /// A crate's component, compiled by the relay itself, once per run.
    pub fn build(&self, source: &str) -> Result<PathBuf, Failure> {
        let file = self.scratch.join(format!("{}.wasm", source.replace('/', "-")));
        if file.exists() {
            return Ok(file);
        }
        let mut build = Command::new(&self.relay);
        build.args(["component", "build", source, "-o"]).arg(&file).stdout(Stdio::null());
        let status = build.status().context(self.relay.display())?;
        let root = Path::new(source).exists();
        status.success().then_some(file).with_context(|| format!("{source} was not built (there: {root})"))
    }

    /// Makes the sample tenant's folder, with its filter.
    pub fn build_filter(&self) -> Result<(), Failure> {
        let tenant = self.scratch.join("tenants/market");
        fs::create_dir_all(&tenant).context(tenant.display())?;
        fs::copy(self.build(FILTER)?, tenant.join("filter.wasm")).context(tenant.display()).map(drop)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}
