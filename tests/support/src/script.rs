//! Clients that are other people's programs: scripts for Node and Python with their libraries, and for a shell with
//! curl. `.ci/setup tests` installs these; tests that need one are skipped where it is not.

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

/// A script that runs, and ends with the test.
pub struct Script {
    process: Process,
    /// Where it lies.
    _folder: Folder,
}

impl Script {
    /// A module for Node, with the packages of `tests/clients/package.json`.
    pub fn node(source: &str, arguments: &[&str]) -> Option<Self> {
        let packages = node_packages()?;
        let folder = Folder::empty();
        // Where Node looks for what a module imports.
        symlink(packages, folder.path("node_modules")).unwrap();
        folder.write("client.mjs", source);
        let mut command = Command::new("node");
        command.arg(folder.path("client.mjs")).args(arguments);
        Some(Self::run(command, folder))
    }

    /// For Python, with the packages of `tests/clients/requirements.txt`.
    pub fn python(source: &str, arguments: &[&str]) -> Option<Self> {
        let packages = tools().join("python");
        if !there("python3") || !packages.join("installed").is_file() {
            return skipped("python3, or what .ci/setup installs for it,");
        }
        let folder = Folder::empty();
        folder.write("client.py", source);
        let mut command = Command::new("python3");
        // A line comes when it is printed.
        command.arg("-u").arg(folder.path("client.py")).args(arguments).env("PYTHONPATH", packages);
        Some(Self::run(command, folder))
    }

    /// A line for a shell, which calls curl.
    pub fn curl(source: &str) -> Option<Self> {
        skip::need("curl")?;
        let mut command = Command::new("sh");
        // Silent but for errors. In the place of the shell, so that it ends with the test.
        command.arg("-c").arg(format!("exec {}", source.replacen("curl ", "curl --silent --show-error ", 1)));
        Some(Self::run(command, Folder::empty()))
    }

    fn run(mut command: Command, folder: Folder) -> Self {
        // The libraries would ask these for the way to the relay.
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command.stdin(Stdio::piped());
        Self { process: Process::spawn(command), _folder: folder }
    }

    /// The next line that it prints.
    pub async fn said(&mut self) -> String {
        match self.line().await {
            Some(line) => line,
            None => panic!("it has ended: {}", self.log()),
        }
    }

    /// The same, as JSON.
    pub async fn said_json(&mut self) -> Value {
        let line = self.said().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Waits for its end, which is a good one; what it printed until then.
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

/// The packages that Node has for [`Script::node`]; the test is skipped without them, or Node.
pub fn node_packages() -> Option<PathBuf> {
    let packages = tools().join("node_modules");
    if there("node") && packages.join("installed").is_file() {
        Some(packages)
    } else {
        skipped("node, or what .ci/setup installs for it,")
    }
}

/// The folder of the clients that `.ci/setup tests` installs.
pub fn tools() -> PathBuf {
    cache("CLIENT_TOOLS", "clients")
}

/// A folder of what `.ci/setup tests` installs: where the variable says, or else of that name.
pub fn cache(name: &str, folder: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(name).unwrap_or_else(|| {
        let cache = variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap().join(".cache"));
        cache.join("edge-relay/tools").join(folder)
    })
}
