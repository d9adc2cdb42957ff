//! A folder that guests see.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// A folder, opened when the manifest was read, so that a later change of its path makes no difference. Otherwise a
/// guest with the right to write could put a link in the place of another folder granted below.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The path that guests see.
    pub guest: String,
    pub write: bool,
    /// The path it was opened at, for messages.
    pub path: PathBuf,
    opened: Arc<File>,
}

impl Folder {
    /// Opens a folder. Its `path` is then looked up from the opened folder, so that the two always match.
    pub(crate) fn open(path: &Path, guest: String, write: bool) -> io::Result<Self> {
        // With the dot, a pipe is an error; without it, opening one would wait.
        let opened = File::open(path.join("."))?;
        let path = real_path(&opened)?;
        Ok(Self { guest, write, path, opened: Arc::new(opened) })
    }

    /// The device that it is on.
    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(self.opened.metadata()?.dev())
    }

    /// A path that leads to the opened folder and nowhere else, as long as `self` lives.
    pub fn handle(&self) -> PathBuf {
        by_descriptor(self.opened.as_raw_fd())
    }
}

/// The path of an open file or folder, with all links followed. It is safe to check, unlike a path that is looked up
/// first: that could change before it is opened.
pub(crate) fn real_path(opened: &File) -> io::Result<PathBuf> {
    by_descriptor(opened.as_raw_fd()).read_link().map_err(|error| match error.kind() {
        // The file itself is there, for it is open.
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, NoProc),
        _ => error,
    })
}

/// The machine shows the relay no `/proc`.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no /proc, by which the relay finds open files and starts the compiler; mount it where the relay runs: \
     mount -t proc proc /proc"
)]
struct NoProc;

/// Whether this is the error of [`real_path`] where there is no `/proc`.
pub(crate) fn is_no_proc(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<NoProc>())
}

/// Whether one of two paths is the other or within it. Both have their links followed.
pub(crate) fn meet(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// The kernel's own link to an open file (proc(5)).
fn by_descriptor(descriptor: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{descriptor}"))
}
