//! Files that have no name, so that nobody else can open them: the compiler's input and output, and code to be mapped.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat},
    io::Errno,
};

use crate::component::load::{
    machine::{MachineError, is_noexec},
    unfinished::Unfinished,
};

/// Makes such files.
pub struct Nameless {
    /// Where they are if the system has none in memory.
    folders: Vec<PathBuf>,
}

impl Nameless {
    /// `cache`: the folder for compiled code.
    pub fn new(cache: Option<&Path>) -> Self {
        let cache = cache.map(Path::to_owned);
        Self { folders: cache.into_iter().chain([std::env::temp_dir()]).collect() }
    }

    /// An empty file from which code may run: in memory, or else in the first folder that can have it.
    pub fn create(&self, name: &str) -> Result<File, MachineError> {
        // Sandboxes and old kernels have no such files.
        let refused = match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) {
            Ok(file) => return Ok(file.into()),
            Err(refused) => refused,
        };
        let mut tried = Vec::new();
        for folder in &self.folders {
            match in_folder(folder) {
                Ok(file) => return Ok(file),
                Err(why) => tried.push(format!("{} ({why})", folder.display())),
            }
        }
        Err(MachineError::NoPlace { refused, folders: tried.join(", ") })
    }
}

/// An empty file in a folder, which has lost its name.
fn in_folder(path: &Path) -> io::Result<File> {
    let folder: OwnedFd = openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if is_noexec(&folder) {
        return Err(io::Error::other("mounted noexec"));
    }
    // Its name is removed when it is dropped here.
    Unfinished::create(&folder)?.file.try_clone()
}

/// Has a file never change again. Nobody else may have it open.
pub fn seal(file: &File) -> io::Result<()> {
    match fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
        // Only files of `memfd_create` have seals. Others cannot be opened either: they have no name.
        Err(Errno::INVAL | Errno::PERM) => Ok(()),
        sealed => Ok(sealed?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        fs,
        io::{Read, Seek, Write},
        os::unix::fs::MetadataExt,
    };

    use super::*;

    #[test]
    fn a_file_in_a_folder_leaves_no_name_and_is_for_this_user_alone() {
        // A folder in memory refuses seals in a way of its own.
        for parent in [std::env::temp_dir(), "/dev/shm".into()] {
            let path = parent.join(format!("edge-relay-nameless-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            if !is_noexec(File::open(&path).unwrap()) {
                let mut file = in_folder(&path).unwrap();
                assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
                assert_eq!((file.metadata().unwrap().mode() & 0o777, file.metadata().unwrap().nlink()), (0o600, 0));
                file.write_all(b"code").unwrap();
                file.rewind().unwrap();
                seal(&file).unwrap();
                let mut read = String::new();
                file.read_to_string(&mut read).unwrap();
                assert_eq!(read, "code");
            }
            fs::remove_dir(&path).unwrap();
            assert!(in_folder(&path).is_err());
        }
    }

    #[test]
    fn a_sealed_file_in_memory_does_not_change() {
        let mut file = Nameless::new(None).create("code").unwrap();
        file.write_all(b"code").unwrap();
        seal(&file).unwrap();
        assert_eq!(file.write_all(b"other").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
