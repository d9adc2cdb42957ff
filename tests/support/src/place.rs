//! Where things are: the program that is tested, the repository, the folders of the build.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
};

/// The program that the tests run: the one that cargo built for them.
///
/// The variable `EDGE_RELAY_PROGRAM` names another one, by its absolute path. So you can see a new test fail with the
/// program of an older commit.
pub fn program() -> PathBuf {
    let other = OTHER.lock().unwrap().clone();
    if let Some(other) = other.or_else(|| env::var_os("EDGE_RELAY_PROGRAM").map(PathBuf::from)) {
        assert!(other.is_absolute() && other.is_file(), "no program at {}", other.display());
        return other;
    }
    // Cargo sets the variable only for tests of the host's package, when it builds and when it runs them.
    let built = env::var_os("CARGO_BIN_EXE_edge-relay");
    built.expect("cargo runs the tests; without it EDGE_RELAY_PROGRAM names the program").into()
}

/// What [`use_program`] has chosen.
static OTHER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Has what starts from now on be this program, or with `None` the usual one: for benchmarks that compare two.
pub fn use_program(other: Option<PathBuf>) {
    *OTHER.lock().unwrap() = other;
}

/// A path in the repository.
pub fn root(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap().join(path)
}

/// The folder of the build, which cargo marks. The test's own program lies in it.
pub fn target() -> &'static Path {
    static TARGET: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = env::current_exe().unwrap();
        let marked = test.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
        marked.expect("the test lies in a folder of cargo's").to_owned()
    });
    &TARGET
}

/// A folder where tests may leave files: cargo's `CARGO_TARGET_TMPDIR`, a variable that it sets only for tests, not for
/// this crate.
pub fn temporary() -> &'static Path {
    static TEMPORARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = target().join("tmp");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    });
    &TEMPORARY
}

/// The folder in which guests are built. The host's own build has put their standard library there.
pub fn guests() -> PathBuf {
    target().join("guests")
}
