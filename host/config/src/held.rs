//! Files beneath a folder that is held open.
//!
//! Whoever can write to a folder can exchange a file for a link or a pipe between a look at it and its opening. So a
//! folder is opened once, each file is opened beneath it, and what was opened is looked at. Links inside the folder are
//! followed, as orchestrators make them (`..data`, `live/`); a link that leads out of it is an error.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, readlinkat},
    io::Errno,
};

use crate::grants::real_path;

/// Links that one name may lead through, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Longest name or target of a link, in bytes: the kernel's own limit (PATH_MAX).
const MAX_NAME: usize = 4096;
/// Most folders on the way to a file that are held open at once.
const MAX_DEPTH: usize = 256;
/// Times that the kernel is asked again while something beneath the folder is being renamed.
const MAX_RETRIES: usize = 100;

/// For reading, whatever it turns out to be: a pipe or a terminal makes nobody wait.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Why a file beneath a folder is not read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it leads out of the folder")]
    LeadsOut,
    #[error("it is not a file, but a folder, a pipe or a device; give a regular file")]
    NotAFile,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl OpenError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

impl From<Errno> for OpenError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::XDEV => Self::LeadsOut,
            error => Self::Io(error.into()),
        }
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io(error) => error,
            error => Self::other(error),
        }
    }
}

/// Which folder it is, whatever path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderId {
    device: u64,
    inode: u64,
}

/// A folder that is held open.
#[derive(Debug)]
pub struct HeldFolder(File);

impl HeldFolder {
    /// Opens a folder. The path may lead through links: it is the operator's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // It need not be a folder that the host may list.
        let opened = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(opened.into()))
    }

    pub fn id(&self) -> io::Result<FolderId> {
        let found = self.0.metadata()?;
        Ok(FolderId { device: found.dev(), inode: found.ino() })
    }

    /// Where it is now, links followed.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        real_path(&self.0)
    }

    /// Opens a regular file beneath the folder.
    pub fn file(&self, name: &Path) -> Result<File, OpenError> {
        let opened = match beneath(self.0.as_fd(), name, How::READ) {
            Err(OpenError::LeadsOut) => {
                beneath(self.0.as_fd(), &self.absolute(name).ok_or(OpenError::LeadsOut)?, How::READ)
            }
            opened => opened,
        };
        let file = File::from(opened?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(OpenError::NotAFile) }
    }

    /// The name beneath the folder of what an absolute path, or a link with one, leads to. The kernel takes these for
    /// names that lead out.
    fn absolute(&self, name: &Path) -> Option<PathBuf> {
        let own = self.real_path().ok()?;
        Some(own.join(name).canonicalize().ok()?.strip_prefix(own).ok()?.to_owned())
    }
}

/// Opens a regular file, wherever the path leads: it is the operator's.
pub fn open_file(path: &Path) -> Result<File, OpenError> {
    let file = File::from(open(path, READ, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(OpenError::NotAFile) }
}

/// How a file or folder is opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub flags: OFlags,
    /// The permissions of a file that is made.
    pub mode: Mode,
}

impl How {
    const READ: Self = Self { flags: READ, mode: Mode::empty() };
}

/// Opens what a name beneath an open folder leads to: a regular file or a folder. Nobody waits for a pipe.
///
/// # Errors
/// There is nothing of this name, it leads out of the folder, or it is a pipe, a socket or a device.
pub fn open_beneath(folder: BorrowedFd<'_>, name: &Path, how: How) -> Result<File, OpenError> {
    let flags = how.flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(beneath(folder, name, How { flags, ..how })?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_dir() { Ok(file) } else { Err(OpenError::NotAFile) }
}

fn beneath(folder: BorrowedFd<'_>, name: &Path, how: How) -> Result<OwnedFd, OpenError> {
    for _ in 0..MAX_RETRIES {
        match openat2(folder, name, how.flags, how.mode, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return part_by_part(folder, name, how),
            // No other side reads the socket, or has the pipe open.
            Err(Errno::NXIO) => return Err(OpenError::NotAFile),
            opened => return Ok(opened?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// The same without `openat2`: opens each part of the name in turn, and follows links by hand.
fn part_by_part(base: BorrowedFd<'_>, name: &Path, how: How) -> Result<OwnedFd, OpenError> {
    let last_flags = how.flags | OFlags::NOFOLLOW;
    let mut folders: Vec<OwnedFd> = Vec::new();
    let mut rest = parts(name)?;
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            folders.pop().ok_or(OpenError::LeadsOut)?;
            continue;
        }
        let at = folders.last().map_or(base, AsFd::as_fd);
        let found = match openat(at, &part, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) if rest.is_empty() && how.flags.contains(OFlags::CREATE) => {
                return Ok(openat(at, &part, last_flags, how.mode)?);
            }
            found => found?,
        };
        if folders.len() > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        match FileType::from_raw_mode(fstat(&found)?.st_mode) {
            FileType::Symlink if rest.is_empty() && how.flags.contains(OFlags::NOFOLLOW) => {
                return Err(Errno::LOOP.into());
            }
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&found, "", Vec::new())?;
                rest.extend(parts(Path::new(&OsString::from_vec(target.into_bytes())))?);
            }
            FileType::Directory => folders.push(found),
            FileType::RegularFile if rest.is_empty() => return Ok(openat(at, &part, last_flags, how.mode)?),
            _ if rest.is_empty() => return Err(OpenError::NotAFile),
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    // It is a folder.
    Ok(openat(folders.last().map_or(base, AsFd::as_fd), ".", how.flags - OFlags::NOFOLLOW, how.mode)?)
}

/// A name's parts, the last one first.
fn parts(name: &Path) -> Result<Vec<OsString>, OpenError> {
    if name.as_os_str().is_empty() {
        return Err(Errno::NOENT.into());
    }
    if name.as_os_str().len() > MAX_NAME {
        return Err(Errno::NAMETOOLONG.into());
    }
    let part = |part: Component<'_>| match part {
        Component::Normal(part) => Some(Ok(part.to_owned())),
        Component::ParentDir => Some(Ok("..".into())),
        Component::CurDir => None,
        Component::RootDir | Component::Prefix(_) => Some(Err(OpenError::LeadsOut)),
    };
    let mut parts = name.components().filter_map(part).collect::<Result<Vec<_>, _>>()?;
    parts.reverse();
    Ok(parts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        fs,
        io::Read,
        os::unix::fs::symlink,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// A folder `own` with files and links, and one beside it; removed after the test.
    struct Scene(PathBuf);

    impl Scene {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("edge-relay-held-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let root = std::env::temp_dir().join(name);
            for folder in ["own/..2024", "own/deep/deeper", "other"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            for file in ["own/file", "own/..2024/key", "own/deep/file", "other/file"] {
                fs::write(root.join(file), file).unwrap();
            }
            for (link, to) in [
                ("own/..data", "..2024"),
                ("own/key", "..data/key"),
                ("own/deep/up", "../file"),
                ("own/deep/deeper/down-and-up", "../../deep/./file"),
                ("own/out", "../other/file"),
                ("own/out-folder", "../other"),
                ("own/absolute", "/etc/passwd"),
                ("own/magic", "/proc/self/fd/0"),
                ("own/dangling", "nothing"),
                ("own/loop", "loop"),
            ] {
                symlink(to, root.join(link)).unwrap();
            }
            rustix::fs::mknodat(rustix::fs::CWD, root.join("own/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
            drop(std::os::unix::net::UnixListener::bind(root.join("own/socket")).unwrap());
            Self(root)
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a name leads to: a file's content, or an error's first word.
    fn read(opened: Result<OwnedFd, OpenError>) -> String {
        let file = opened
            .map(File::from)
            .and_then(|file| if file.metadata()?.is_file() { Ok(file) } else { Err(OpenError::NotAFile) });
        match file {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
            Err(OpenError::LeadsOut) => "out".into(),
            Err(OpenError::NotAFile) => "no file".into(),
            Err(OpenError::Io(error)) => format!("{:?}", error.kind()),
        }
    }

    #[test]
    fn files_are_opened_beneath_their_folder_with_openat2_and_without() {
        let scene = Scene::new();
        let held = HeldFolder::open(&scene.0.join("own")).unwrap();
        for (name, leads) in [
            ("file", "own/file"),
            ("./deep/../file", "own/file"),
            ("key", "own/..2024/key"),
            ("..data/key", "own/..2024/key"),
            ("deep/up", "own/file"),
            ("deep/deeper/down-and-up", "own/deep/file"),
            ("out", "out"),
            ("out-folder/file", "out"),
            ("../other/file", "out"),
            ("deep/../../other/file", "out"),
            ("absolute", "out"),
            ("magic", "out"),
            ("/etc/passwd", "out"),
            ("pipe", "no file"),
            ("socket", "no file"),
            ("deep", "no file"),
            (".", "no file"),
            ("file/more", "NotADirectory"),
            ("dangling", "NotFound"),
            ("nothing", "NotFound"),
            ("loop", "FilesystemLoop"),
        ] {
            assert_eq!(read(beneath(held.0.as_fd(), Path::new(name), How::READ)), leads, "openat2: {name}");
            assert_eq!(read(part_by_part(held.0.as_fd(), Path::new(name), How::READ)), leads, "part by part: {name}");
        }
    }

    /// A file that turns into a pipe, a link out, and back, all the time.
    #[test]
    fn an_exchange_makes_nobody_wait_and_leads_nowhere_else() {
        let scene = Scene::new();
        let held = HeldFolder::open(&scene.0.join("own")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let name = scene.0.join("own/flips");
                while !stop.load(Ordering::Relaxed) {
                    for other in ["file", "pipe", "out", "socket"] {
                        let link = scene.0.join("own/next");
                        symlink(other, &link).unwrap();
                        fs::rename(&link, &name).unwrap();
                    }
                }
            });
            for _ in 0..3_000 {
                for opened in [beneath, part_by_part].map(|open| open(held.0.as_fd(), Path::new("flips"), How::READ)) {
                    let found = read(opened);
                    assert!(["own/file", "no file", "out", "NotFound"].contains(&found.as_str()), "{found}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn what_guests_open_is_a_file_or_a_folder_beneath_theirs_with_openat2_and_without() {
        let scene = Scene::new();
        let held = HeldFolder::open(&scene.0.join("own")).unwrap();
        let (read, write) = (OFlags::RDONLY, OFlags::RDWR | OFlags::CREATE);
        for open in [beneath, part_by_part] {
            let opened = |name: &str, flags: OFlags| {
                let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
                let file = File::from(open(held.0.as_fd(), Path::new(name), How { flags, mode })?);
                let kind = file.metadata()?.file_type();
                Ok::<_, OpenError>(if kind.is_dir() {
                    "folder"
                } else if kind.is_file() {
                    "file"
                } else {
                    "other"
                })
            };
            for (name, flags, kind) in [
                (".", read, "folder"),
                ("deep", read | OFlags::DIRECTORY, "folder"),
                ("..data", read, "folder"),
                ("deep/up", read, "file"),
                ("new", write, "file"),
                ("new", write, "file"),
            ] {
                assert_eq!(opened(name, flags).unwrap(), kind, "{name}");
            }
            fs::remove_file(scene.0.join("own/new")).unwrap();
            for (name, flags) in [
                ("key", read | OFlags::NOFOLLOW),
                ("out", read),
                ("out-folder/new", write),
                ("../other/file", read),
                ("pipe", OFlags::WRONLY),
                ("socket", read),
                ("file", read | OFlags::DIRECTORY),
                ("file", write | OFlags::EXCL),
                ("nothing", read),
            ] {
                assert!(opened(name, flags).is_err(), "{name}");
            }
        }
        let pipe = open_beneath(held.0.as_fd(), Path::new("pipe"), How::READ);
        assert!(matches!(pipe, Err(OpenError::NotAFile)));
    }

    #[test]
    fn absolute_links_that_stay_inside_are_followed() {
        let scene = Scene::new();
        let own = scene.0.join("own").canonicalize().unwrap();
        symlink(own.join("deep/file"), own.join("inside")).unwrap();
        symlink(own.join("../other/file"), own.join("outside")).unwrap();
        let held = HeldFolder::open(&own).unwrap();
        let text = |name: &Path| held.file(name).map(|file| io::read_to_string(file).unwrap());
        assert_eq!(text(Path::new("inside")).unwrap(), "own/deep/file");
        assert_eq!(text(&own.join("file")).unwrap(), "own/file");
        assert!(matches!(text(Path::new("outside")), Err(OpenError::LeadsOut)));
        assert!(matches!(text(Path::new("/etc/passwd")), Err(OpenError::LeadsOut)));
    }

    #[test]
    fn a_folder_need_not_be_listed_and_a_long_way_is_refused() {
        let scene = Scene::new();
        let held = HeldFolder::open(&scene.0.join("own")).unwrap();
        assert!(held.file(Path::new("file")).is_ok());
        for name in ["x".repeat(MAX_NAME + 1), "deep/../".repeat(MAX_NAME)] {
            let error = part_by_part(held.0.as_fd(), Path::new(&name), How::READ).unwrap_err();
            assert!(matches!(error, OpenError::Io(_)), "{error}");
        }
    }

    #[test]
    fn a_folder_that_was_exchanged_is_another() {
        let scene = Scene::new();
        let link = scene.0.join("link");
        symlink("own", &link).unwrap();
        let first = HeldFolder::open(&link).unwrap();
        fs::remove_file(&link).unwrap();
        symlink("other", &link).unwrap();
        let second = HeldFolder::open(&link).unwrap();
        assert_ne!(first.id().unwrap(), second.id().unwrap());
        assert!(first.real_path().unwrap().ends_with("own"));
    }
}
