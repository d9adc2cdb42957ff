//! Files that do not have their final name yet.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// How their names begin.
pub const UNFINISHED: &str = ".new-";

/// A file that does not have its final name yet. If it is dropped before it gets that, its name is removed.
pub struct Unfinished<'f> {
    folder: &'f OwnedFd,
    pub name: String,
    pub file: File,
}

impl<'f> Unfinished<'f> {
    pub fn create(folder: &'f OwnedFd) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // The time tells its name apart from those of an earlier process with the same id.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos();
        let name = format!("{UNFINISHED}{}-{now}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(folder, &name, flags, Mode::RUSR | Mode::WUSR)?.into();
        Ok(Self { folder, name, file })
    }

    pub fn finish(self, name: &str) -> io::Result<()> {
        Ok(renameat(self.folder, &self.name, self.folder, name)?)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // A finished file no longer has this name.
        let _ = unlinkat(self.folder, &self.name, AtFlags::empty());
    }
}
