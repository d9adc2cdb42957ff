//! Components in JavaScript and Python, built as a tenant's developer builds them. `.ci/setup tests` installs the
//! toolchains. Tests that need one are skipped where it is missing. A built component is kept until something that it
//! was made of changes.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use tokio::sync::MutexGuard;

use super::{
    place::root,
    process::shown,
    script::cache,
    skip::{skipped, there},
    tenant::Folder,
};

/// The oldest version of Node that `components/javascript/build.js` runs on: its first two numbers.
const OLDEST_NODE: (u32, u32) = (20, 11);

#[derive(Clone, Copy, Debug, Hash)]
pub enum Language {
    JavaScript,
    Python,
}

/// Waits until no other test of a guide builds a component and has it compiled, which takes a processor for a minute.
pub async fn turn() -> MutexGuard<'static, ()> {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    TURN.lock().await
}

/// The component of the sample tenant, which has every role.
pub fn market(language: Language) -> Option<PathBuf> {
    let source = match language {
        Language::JavaScript => "components/javascript/src",
        Language::Python => "components/python",
    };
    component(language, &root(source), &wit(), "tenant-component")
}

/// A component of which every role throws an exception.
pub fn exceptions(language: Language) -> Option<PathBuf> {
    component(language, &root("tests/guests/exceptions"), &wit(), "tenant-component")
}

/// The folder with the WIT of the tenants' components.
pub fn wit() -> PathBuf {
    root("wit/edge-relay-tenant@0.1.0")
}

/// Builds the component of a folder's `app.js` or `app.py`. `None`: its toolchain is not installed.
pub fn component(language: Language, source: &Path, wit: &Path, world: &str) -> Option<PathBuf> {
    /// One build runs at a time, because each takes a processor. A second request for a component then finds it built.
    static BUILDING: Mutex<()> = Mutex::new(());
    let (tools, installed) = installed(language)?;
    let _building = BUILDING.lock();
    let built = tools.join(format!("built/{:016x}.wasm", key(language, &installed, source, wit, world)));
    if !built.is_file() {
        let folder = Folder::empty();
        copy_folder(source, &folder.path("source"));
        build(language, &tools, &folder, wit, world);
        fs::create_dir_all(built.parent().unwrap()).unwrap();
        // Moved in one step, because other test programs may look for it.
        let part = built.with_extension(std::process::id().to_string());
        fs::copy(folder.path("app.wasm"), &part).unwrap();
        fs::rename(part, &built).unwrap();
    }
    Some(built)
}

/// Returns the folder of a language's toolchain, and the bytes that tell its version.
pub fn installed(language: Language) -> Option<(PathBuf, Vec<u8>)> {
    let tools = cache("LANGUAGE_TOOLS", "languages");
    let (tools, installed, program) = match language {
        Language::JavaScript => (tools.join("javascript"), "node_modules/installed", "node"),
        Language::Python => (tools.join("python"), "installed", "python3"),
    };
    if !there(program) || matches!(language, Language::JavaScript) && node() < OLDEST_NODE {
        return skipped(&format!("a {program} that is new enough for {language:?} components"));
    }
    match fs::read(tools.join(installed)) {
        Ok(installed) => Some((tools, installed)),
        Err(_) => skipped(&format!("the toolchain that .ci/setup installs for {language:?}")),
    }
}

fn node() -> (u32, u32) {
    let version = Command::new("node").arg("--version").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let mut numbers = version.trim_start_matches('v').split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

fn key(language: Language, installed: &[u8], source: &Path, wit: &Path, world: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (language, installed, world).hash(&mut hasher);
    fs::read(root("components/javascript/build.js")).unwrap().hash(&mut hasher);
    for file in files(source).into_iter().chain(files(wit)) {
        (file.file_name(), fs::read(&file).unwrap()).hash(&mut hasher);
    }
    hasher.finish()
}

/// Builds the folder's `source` into its `app.wasm`.
fn build(language: Language, tools: &Path, folder: &Folder, wit: &Path, world: &str) {
    let (source, out) = (folder.path("source"), folder.path("app.wasm"));
    let mut command = match language {
        Language::JavaScript => {
            folder.copy(&root("components/javascript/build.js"), "build.mjs");
            symlink(tools.join("node_modules"), folder.path("node_modules")).unwrap();
            let mut command = Command::new("node");
            command.arg(folder.path("build.mjs")).arg(wit).args([world, "app.js"]).arg(&out);
            command
        }
        Language::Python => {
            let mut command = Command::new(tools.join("bin/componentize-py"));
            command.env("PYTHONPATH", tools).arg("--wit-path").arg(wit);
            command.args(["--world", world, "componentize", "app", "--output"]).arg(&out);
            command
        }
    };
    let output = command.current_dir(source).output().unwrap();
    assert!(output.status.success() && out.is_file(), "{command:?}: {}", shown(&output));
}

/// Lists all files of a folder in the order of their paths, without those that toolchains leave behind.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() && !entry.ends_with("__pycache__") {
            files.extend(self::files(&entry));
        } else if entry.is_file() && entry.extension().is_none_or(|extension| extension != "wasm") {
            files.push(entry);
        }
    }
    files
}

pub fn copy_folder(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}
