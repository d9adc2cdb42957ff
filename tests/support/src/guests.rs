//! Components, built from their source once in a run.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{
    place::{self, root},
    process::{command, shown},
    skip::skipped,
};

/// The roles of the sample tenant.
pub const MARKET: [&str; 4] = ["filter", "client", "api", "job"];

/// A filter that misbehaves as its settings say.
pub fn hostile() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/hostile"))
}

/// A filter that imports `acme:unknown/thing@1.0.0`.
pub fn stranger() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/stranger"))
}

/// A component that exports no role.
pub fn roleless() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/roleless"))
}

/// A filter that takes commands from its upstream, and a job that says when it runs.
pub fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/probe"))
}

/// A filter that says which version of it has filtered. The version is these four digits of its code.
pub fn versioned(digits: u16) -> Vec<u8> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let mut code = std::fs::read(BUILT.get_or_init(|| build("tests/guests/versioned"))).unwrap();
    let places: Vec<_> =
        code.windows(9).enumerate().filter(|(_, bytes)| bytes == b"code-0000").map(|(at, _)| at).collect();
    assert_eq!(places.len(), 1, "one place has the version");
    code[places[0] + 5..][..4].copy_from_slice(format!("{digits:04}").as_bytes());
    code
}

/// A filter that tells its upstream which channels are active.
pub fn demand() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/demand"))
}

/// A filter that shows what it is told of connections.
pub fn told() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/told"))
}

/// A dial component that does what its settings say.
pub fn dialer() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/dialer"))
}

/// A client handler that does what clients tell it.
pub fn handler() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/handler"))
}

/// An API that does what the path says.
pub fn api() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/api"))
}

/// An API that uses what it may be granted.
pub fn grants() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("tests/guests/grants"))
}

/// A component of the sample tenant, by its role.
pub fn market(role: &str) -> &'static Path {
    static BUILT: [OnceLock<PathBuf>; 4] = [const { OnceLock::new() }; 4];
    let nth = MARKET.iter().position(|known| *known == role).unwrap();
    BUILT[nth].get_or_init(|| build(&format!("components/market/{role}")))
}

/// A handler that sends back every message.
pub fn echo() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("components/echo"))
}

/// The sample tenant's folder.
pub fn market_folder() -> PathBuf {
    root("components/market")
}

/// Builds a guest as a tenant would, in the folder of the guests.
///
/// Only the file is checked here. The command also builds a component that no host would run, and then says so. The
/// tests of `component` check what it prints.
fn build(source: &str) -> PathBuf {
    build_crate(&root(source))
}

/// Builds a crate, wherever it lies, and returns its component.
pub fn build_crate(source: &Path) -> PathBuf {
    let name = source.to_str().unwrap().replace(['/', '.'], "-");
    let built = place::temporary().join("guests").join(format!("{name}.wasm"));
    std::fs::create_dir_all(built.parent().unwrap()).unwrap();
    // Without this, a failed build would leave the component of an earlier one.
    let _ = std::fs::remove_file(&built);
    let mut command =
        command(&["component".as_ref(), "build".as_ref(), source.as_os_str(), "-o".as_ref(), built.as_os_str()]);
    let output = command.env("CARGO_TARGET_DIR", place::guests()).output().unwrap();
    assert!(built.is_file(), "{} was not built: {}", source.display(), shown(&output));
    built
}

/// A component of JavaScript, made by other people's tools. `None`: they are not installed.
pub fn foreign() -> Option<PathBuf> {
    let built = place::temporary().join("guests/foreign.wasm");
    let script = root("tests/guests/foreign/build.sh");
    let output = Command::new(script).arg(&built).output().unwrap();
    match output.status.code() {
        Some(0) => Some(built),
        // Node is missing, or its packages cannot be downloaded.
        Some(3 | 4) => {
            let why = String::from_utf8_lossy(&output.stderr);
            skipped(&format!("jco ({})", why.trim().lines().last().unwrap_or_default()))
        }
        _ => panic!("{}", shown(&output)),
    }
}
