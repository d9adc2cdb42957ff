//! `edge-relay component build`: makes a component of a crate or a core module.

use std::{
    env, fmt, fs, io, path,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio, id},
};

use rustix::fs::{Access, access};
use serde::Deserialize;
use toolchain::{Toolchain, ToolchainError};
use wasmtime::{Config, Engine, Module};
use wit_component::{ComponentEncoder, metadata};

use crate::component::load::{
    file,
    file::{Binary, FileError},
};

/// Makes a component of `source`, a crate's folder or a `.wasm` file, and returns its path.
///
/// Without `output`, a crate's component goes into the crate's folder under the library's name, and `x.wasm` becomes
/// `x.component.wasm` beside it. A file that is a component already is copied as it is. The output appears whole or not
/// at all.
pub fn build(source: &Path, output: Option<&Path>) -> Result<PathBuf, BuildError> {
    if let Some(output) = output {
        check_output(output)?;
    }
    let is_crate = source.is_dir();
    let wasm = if is_crate { compile(source)? } else { source.to_owned() };
    let opened = config::open_file(&wasm).map_err(|error| FileError::Read(error.into()));
    let (binary, bytes) = opened.and_then(|file| file::read(&file)).map_err(|error| match error {
        FileError::NotWasm => BuildError::NotWasm { path: wasm.clone() },
        error => BuildError::Read { path: wasm.clone(), error },
    })?;
    let component = match binary {
        Binary::Component => bytes,
        Binary::CoreModule => {
            componentize(&bytes).map_err(|error| BuildError::Componentize { path: wasm.clone(), error })?
        }
    };
    let output = match output {
        Some(output) => output.to_owned(),
        None if is_crate => source.join(wasm.file_name().unwrap_or_default()),
        None => wasm.with_extension("component.wasm"),
    };
    write_whole(&output, &component).map_err(|error| BuildError::Write { path: output.clone(), error })?;
    Ok(output)
}

/// Makes a component of a core module that carries its WIT world, as wit-bindgen leaves it.
pub fn componentize(core: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    // First, because wit-component panics on a module that ends too early.
    Engine::new(&Config::new())
        .and_then(|engine| Module::validate(&engine, core))
        .map_err(|error| ComponentizeError::Invalid(one_line(error)))?;
    let (without_world, _) = metadata::decode(core).map_err(|error| ComponentizeError::Encode(one_line(error)))?;
    if without_world.is_none() {
        return Err(ComponentizeError::NoWorld);
    }
    ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| ComponentizeError::Encode(one_line(error)))
}

/// Why there is no component. The guest's author can act on each of these.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: FileError },
    #[error("{}: neither a WebAssembly module nor a component; give a crate's folder or a .wasm file", path.display())]
    NotWasm { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Componentize { path: PathBuf, error: ComponentizeError },
    #[error("{}: no such file; give the folder of a crate", manifest.display())]
    NoManifest { manifest: PathBuf },
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    #[error("{}: cargo could not be run: {error}", manifest.display())]
    Cargo { manifest: PathBuf, error: io::Error },
    #[error("{}: cargo build failed ({status}); its messages are above", manifest.display())]
    Compile { manifest: PathBuf, status: ExitStatus },
    #[error("{}: the crate has no `cdylib` library; add: [lib] crate-type = [\"cdylib\"]", manifest.display())]
    NoLibrary { manifest: PathBuf },
    #[error("{}: no such folder to write to; make it first, or choose another output", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("{}: cannot be written: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
}

/// Why a core module does not become a component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentizeError {
    #[error("not a valid module: {0}")]
    Invalid(String),
    #[error("the module does not name its WIT world; was it built with wit-bindgen?")]
    NoWorld,
    #[error("{0}; build it for wasm32-unknown-unknown, with no imports other than those of its WIT world")]
    Encode(String),
}

/// An error and its causes, on one line.
fn one_line(error: impl fmt::Display) -> String {
    format!("{error:#}").replace('\n', " ")
}

/// The part of cargo's JSON messages that matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    target: MessageTarget,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
struct MessageTarget {
    kind: Vec<String>,
}

/// Builds the crate in `directory` and returns its `.wasm`.
fn compile(directory: &Path) -> Result<PathBuf, BuildError> {
    let manifest = directory.join("Cargo.toml");
    let directory = match fs::canonicalize(&manifest) {
        Ok(manifest) => manifest.parent().map(Path::to_owned).unwrap_or_default(),
        Err(_) => return Err(BuildError::NoManifest { manifest }),
    };
    let not_run = |error| BuildError::Cargo { manifest: manifest.clone(), error };
    // Absolute, because cargo runs in the crate's folder. There the crate's own configuration of rustup and cargo
    // applies.
    let target_dir = env::var_os("CARGO_TARGET_DIR").map(path::absolute).transpose().map_err(not_run)?;
    let output = Toolchain::find(&directory)?
        .cargo_build(&directory, target_dir.as_deref())
        .stderr(Stdio::inherit())
        .output()
        .map_err(not_run)?;
    if !output.status.success() {
        return Err(BuildError::Compile { manifest, status: output.status });
    }
    library(&output.stdout, &directory.join("Cargo.toml")).ok_or(BuildError::NoLibrary { manifest })
}

/// The `.wasm` that cargo has made of the crate at `manifest` itself, not of a dependency.
fn library(messages: &[u8], manifest: &Path) -> Option<PathBuf> {
    messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| message.target.kind.iter().any(|kind| kind == "cdylib"))
        .filter(|message| fs::canonicalize(&message.manifest_path).is_ok_and(|path| path == manifest))
        .flat_map(|message| message.filenames)
        .find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
}

/// Checks that a file can be written there. A crate may take minutes to compile, so this comes first.
fn check_output(output: &Path) -> Result<(), BuildError> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(BuildError::NoFolder { folder: folder.to_owned() });
    }
    let writable = access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from);
    let checked = if output.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { writable };
    checked.map_err(|error| BuildError::Write { path: output.to_owned(), error })
}

/// Writes a file beside `path`, then renames it, so that a host that watches the folder never reads half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?.to_owned();
    name.push(format!(".{}.new", id()));
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/market-filter.wasm"));

    /// An empty folder that is removed after the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("edge-relay-build-{name}-{}", id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_core_module_becomes_a_component_and_a_component_is_copied() {
        let folder = Folder::new("module");
        let module = folder.file("market.wasm", CORE);

        let component = build(&module, None).unwrap();
        assert_eq!(component, folder.0.join("market.component.wasm"));
        let bytes = fs::read(&component).unwrap();
        assert!(matches!(Binary::of(&bytes), Some(Binary::Component)));

        let copy = folder.0.join("copy.wasm");
        assert_eq!(build(&component, Some(&copy)).unwrap(), copy);
        assert_eq!(fs::read(&copy).unwrap(), bytes);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 3, "a temporary file was left");
    }

    #[test]
    fn what_cannot_become_a_component_is_named_with_the_reason() {
        let folder = Folder::new("bad");
        let mut torn = CORE.to_vec();
        torn.truncate(CORE.len() / 2);
        for (source, reason) in [
            (folder.0.join("absent.wasm"), "No such file"),
            (folder.0.clone(), "Cargo.toml: no such file"),
            (folder.file("text.wasm", b"(module)"), "neither a WebAssembly module nor a component"),
            (folder.file("short.wasm", b"\0asm\x01"), "neither a WebAssembly module nor a component"),
            (folder.file("plain.wasm", b"\0asm\x01\0\0\0"), "was it built with wit-bindgen?"),
            (folder.file("torn.wasm", &torn), "not a valid module: "),
        ] {
            let error = build(&source, Some(&folder.0.join("out"))).unwrap_err().to_string();
            assert!(error.starts_with(&source.display().to_string()), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        assert!(!folder.0.join("out").exists());
    }

    /// The crate has no manifest, so it would be the next thing to be named.
    #[test]
    fn an_output_that_cannot_be_written_is_named_before_anything_is_compiled() {
        let folder = Folder::new("output");
        let file = folder.file("file", b"");
        let missing = folder.0.join("missing/dir");
        for (output, named, reason) in [
            (missing.join("x.wasm"), &missing, "no such folder"),
            (file.join("x.wasm"), &file, "no such folder"),
            (folder.0.clone(), &folder.0, "is a directory"),
        ] {
            let error = build(&folder.0, Some(&output)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: ", named.display())) && error.contains(reason), "{error}");
        }
        assert!(!missing.exists());
    }

    #[test]
    fn the_library_is_the_one_of_the_crate_itself() {
        let folder = Folder::new("messages");
        let manifest = fs::canonicalize(folder.file("Cargo.toml", b"")).unwrap();
        let artifact = |manifest: &Path, kind: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":{manifest:?},"target":{{"kind":["{kind}"]}},"filenames":["{file}"]}}"#
            )
        };
        let other = artifact(&folder.file("Other.toml", b""), "cdylib", "/t/other.wasm");
        let script = artifact(&manifest, "custom-build", "/t/build-script");
        let own = artifact(&manifest, "cdylib", "/t/own.wasm");
        let finished = r#"{"reason":"build-finished","success":true}"#;

        let messages = [&other, &script, "not JSON", &own, finished].join("\n");
        assert_eq!(library(messages.as_bytes(), &manifest), Some("/t/own.wasm".into()));
        let messages = [&other, &script, finished].join("\n");
        assert_eq!(library(messages.as_bytes(), &manifest), None);
    }
}
