//! A disk of its own for a test: small enough to fill, or one that nothing may be run from.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use super::{skip::skipped, tenant::Folder};

/// The folder that the disk is mounted at.
const MOUNTED: &str = "disk";
/// The file in its root that takes up the room.
const FILLING: &str = "filling";

/// A file system in memory, unmounted when the test ends.
pub struct Disk(Folder);

impl Disk {
    /// Mounts a disk, if this process may.
    pub fn small(bytes: usize) -> Option<Self> {
        Self::mounted(&format!("size={bytes}"))
    }

    /// Mounts a disk that nothing may be run from, if this process may.
    pub fn noexec() -> Option<Self> {
        Self::mounted("size=256m,noexec")
    }

    fn mounted(options: &str) -> Option<Self> {
        let folder = Folder::empty();
        let disk = folder.path(MOUNTED);
        fs::create_dir(&disk).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(disk);
        let output = mount.output().unwrap();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return skipped(&format!("a disk of its own ({})", why.lines().next().unwrap_or_default()));
        }
        Some(Self(folder))
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path(MOUNTED).join(path)
    }

    /// Leaves no free room.
    pub fn fill(&self) {
        let mut filling = File::options().create(true).append(true).open(self.path(FILLING)).unwrap();
        for size in [1 << 20, 4096, 1] {
            let error = loop {
                if let Err(error) = filling.write_all(&vec![0; size]) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }

    /// Gives back the room that [`Disk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.path(FILLING)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0.path(""));
    }
}

/// Unmounts the disk that a test may have mounted in this folder, even while a server still has files open there.
pub fn unmount(folder: &Path) {
    let disk = folder.join(MOUNTED);
    if disk.exists() {
        let _ = Command::new("umount").arg("--lazy").arg(disk).output();
    }
}
