//! Clients that are other people's programs: scripts for Node and Python with their libraries, and shell lines that
//! call curl. `.ci/setup tests` installs these. Tests that need one are skipped where it is missing.

use std::{
    ops::{Deref, DerefMut},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{
    process::Process,
    skip::{self, skipped, there},
    tenant::Folder,
};

/// A running script, which ends with the test.
pub struct Script {
    process: Process,
    /// The folder that the script lies in.
    _folder: Folder,
}

impl Script {
    /// Runs a module in Node, with the packages of `tests/clients/package.json`.
    pub fn node(source: &str, arguments: &[&str]) -> Option<Self> {
        let packages = node_packages()?;
        let folder = Folder::empty();
        // Node looks here for what a module imports.
        symlink(packages, folder.path("node_modules")).unwrap();
        folder.write("client.mjs", source);
        let mut command = Command::new("node");
        command.arg(folder.path("client.mjs")).args(arguments);
        Some(Self::run(command, folder))
    }

    /// Runs a script in Python, with the packages of `tests/clients/requirements.txt`.
    pub fn python(source: &str, arguments: &[&str]) -> Option<Self> {
        let packages = tools().join("python");
        if !there("python3") || !packages.join("installed").is_file() {
            return skipped("python3, or what .ci/setup installs for it,");
        }
        let folder = Folder::empty();
        folder.write("client.py", source);
        let mut command = Command::new("python3");
        // `-u`: a line arrives as soon as it is printed.
        command.arg("-u").arg(folder.path("client.py")).args(arguments).env("PYTHONPATH", packages);
        Some(Self::run(command, folder))
    }

    /// Runs a line of shell that calls curl.
    pub fn curl(source: &str) -> Option<Self> {
        skip::need("curl")?;
        let mut command = Command::new("sh");
        // Prints errors and no progress. `exec` replaces the shell by curl, so that curl ends with the test.
        command.arg("-c").arg(format!("exec {}", source.replacen("curl ", "curl --silent --show-error ", 1)));
        Some(Self::run(command, Folder::empty()))
    }

    fn run(mut command: Command, folder: Folder) -> Self {
        // The libraries would use these proxies to reach the relay.
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command.stdin(Stdio::piped());
        Self { process: Process::spawn(command), _folder: folder }
    }

    /// Returns the next line that it prints.
    pub async fn said(&mut self) -> String {
        match self.line().await {
            Some(line) => line,
            None => panic!("it has ended: {}", self.log()),
        }
    }

    /// Returns the next line that it prints, as JSON.
    pub async fn said_json(&mut self) -> Value {
        let line = self.said().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Waits until it ends with success. Returns what it printed until then.
    pub async fn rest(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        let status = self.end().await;
        assert!(status.success(), "{status}: {}", self.log());
        lines
    }
}

impl Deref for Script {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Script {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The folder of the packages for [`Script::node`]. The test is skipped without them, or without Node.
pub fn node_packages() -> Option<PathBuf> {
    let packages = tools().join("node_modules");
    if there("node") && packages.join("installed").is_file() {
        Some(packages)
    } else {
        skipped("node, or what .ci/setup installs for it,")
    }
}

/// The folder of the client libraries that `.ci/setup tests` installs.
pub fn tools() -> PathBuf {
    cache("CLIENT_TOOLS", "clients")
}

/// A folder of things that `.ci/setup tests` installs: the one that the variable names, else the default one with this
/// name.
pub fn cache(name: &str, folder: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(name).unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap().join(".cache"));
        cache.join("edge-relay/tools").join(folder)
    })
}
