//! A folder that guests see.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A folder, opened when the manifest was read: what its path leads to later makes no difference. A guest that may write in
/// a folder could else put a link in the place of another that is granted below it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Its path as guests see it.
    pub guest: String,
    pub write: bool,
    /// Where it was, for messages.
    pub path: PathBuf,
    opened: Arc<File>,
}

impl Folder {
    /// Opens a folder, which `path` then is: where it really was is looked up from what was opened.
    pub fn open(path: &Path, guest: String, write: bool) -> io::Result<Self> {
        // The dot makes it an error, not a wait, if this is a pipe.
        let opened = File::open(path.join("."))?;
        let path = real_path(&opened)?;
        Ok(Self { guest, write, path, opened: Arc::new(opened) })
    }

    /// A path that leads to what was opened, and nowhere else, for as long as this is kept.
    pub fn handle(&self) -> PathBuf {
        by_descriptor(self.opened.as_raw_fd())
    }
}

/// Where an open file or folder is, all links followed. It cannot be changed between the look and the opening, as the
/// answer to a question about a path can.
pub fn real_path(opened: &File) -> io::Result<PathBuf> {
    by_descriptor(opened.as_raw_fd()).read_link()
}

/// Whether one of two paths is in the other, both with their links followed.
pub fn meet(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// The kernel's own link to an open file (proc(5)).
fn by_descriptor(descriptor: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{descriptor}"))
}
