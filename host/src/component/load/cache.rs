//! Compiled code on disk, checked by an HMAC before it runs: a component is compiled once for each content, however
//! often the host starts.
//!
//! An entry is a file: the code, then an HMAC-SHA-256 over the entry's name and the code. The HMAC's key is random and
//! lies in the same folder. The name has the component's SHA-256 and a number for the engine's compatibility and the
//! program's version. An entry is written under another name, synced and renamed. It never changes afterwards.
//!
//! The cache is defended against others who can write to the folder, to one above it or to what is in it: they could
//! leave files there, swap them or change bytes. It also notices entries that were cut or damaged, and those of another
//! engine or version. So the folder is opened once, and everything in it through that handle. The folder, the key and
//! the entries must belong to the process's user, and nobody else may write to them. A folder that a group may write to
//! is repaired, a key that others may read is replaced. An entry is mapped through the handle that was checked.
//!
//! There is no defence against root and the same user, who can change the running process just as well, nor against
//! someone who has read the key and can write as this user. If an older entry is put back under its name, it is
//! accepted: it is the code of the same component, compiled by the same version.
//!
//! The host runs without the cache too. What cannot be used is logged and counted, and the component is compiled.

use std::{
    fs::{DirBuilder, File},
    io,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileExt, MetadataExt},
    },
    path::Path,
};

use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fchmod, futimens, linkat,
        openat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use crate::{
    component::load::{engine::Hash, machine::is_noexec, trusted::Trusted, unfinished::Unfinished},
    metrics::CodeMetrics,
};

mod sweep;

/// The key's name in the folder.
const KEY: &str = "key";
/// Bytes of the key, and of an entry's HMAC.
const MAC_BYTES: usize = 32;
/// How the names of entries end.
const ENTRY: &str = ".code";
/// How many bytes are copied or checked at a time.
const PIECE: usize = 64 << 10;

/// Why a file or the folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    #[error("it belongs to user {0}, not to the relay's user; chown it")]
    Owner(u32),
    #[error(
        "it belongs to user {0}, not to the relay's user; chown it, or, if it is a volume's own folder, have cache in \
         relay.toml name a folder in it, which the relay makes"
    )]
    FolderOwner(u32),
    #[error("others may write to it (mode {0:o}); chmod go-w it")]
    Mode(u32),
    #[error("it is not the kind of file that belongs there")]
    Kind,
    #[error("it is not what was written: it was cut or changed, or the key is another")]
    Mac,
    #[error("its code does not load: {0}")]
    Code(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for Distrust {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl Distrust {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Owner(_) | Self::FolderOwner(_) => "owner",
            Self::Mode(_) => "mode",
            Self::Kind => "kind",
            Self::Mac => "mac",
            Self::Code(_) => "code",
            Self::Io(_) => "io",
        }
    }

    fn is_absence(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The folder, opened and checked.
pub struct Cache {
    folder: OwnedFd,
    key: hmac::Key,
    /// A number for engine and version. It is the second half of an entry's name.
    tag: u64,
    /// Most bytes of all entries together.
    size: u64,
}

impl Cache {
    /// Opens the folder and its key, and makes them if they are missing.
    pub fn open(path: &Path, tag: u64, size: u64) -> Result<Self, Distrust> {
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty())?;
        check_folder(&File::from(folder.try_clone()?), path)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key(&folder)?);
        Ok(Self { folder, key, tag, size })
    }

    /// Whether code may not run from the folder.
    pub fn is_noexec(&self) -> bool {
        is_noexec(&self.folder)
    }

    /// A component's code. `None`: there is no entry. `Err`: there is one that cannot be trusted.
    pub fn get(&self, hash: &Hash) -> Result<Option<Trusted>, Distrust> {
        match self.entry(&self.name(hash)) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn entry(&self, name: &str) -> Result<Trusted, Distrust> {
        let file = open(&self.folder, name)?;
        let length = check(&file, FileType::RegularFile)?;
        let code = length.checked_sub(MAC_BYTES as u64).ok_or(Distrust::Mac)?;
        let mut found = [0; MAC_BYTES];
        file.read_exact_at(&mut found, code)?;
        let made = self.mac(name, (&file).take(code), &mut io::sink())?;
        // Compared by another HMAC over each of the two. This takes the same time however many of their bytes agree.
        hmac::verify(&self.key, &found, hmac::sign(&self.key, made.as_ref()).as_ref()).map_err(|_| Distrust::Mac)?;
        // The modification time says when the entry was last used. This fails on a read-only cache, which is useful all
        // the same.
        let unused = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&file, &Timestamps { last_access: unused, last_modification: now });
        Ok(Trusted::vouched(file))
    }

    /// Keeps a component's code, in the place of an older entry, and makes room for it.
    pub fn put(&self, hash: &Hash, code: &Trusted, metrics: &CodeMetrics) -> io::Result<()> {
        let name = self.name(hash);
        let unfinished = Unfinished::create(&self.folder)?;
        let length = code.file().metadata()?.len();
        // By position, since the handle's own position is where the child has left it.
        let code = Positioned { file: code.file(), at: 0 }.take(length);
        let mac = self.mac(&name, code, &mut &unfinished.file)?;
        (&unfinished.file).write_all(mac.as_ref())?;
        unfinished.file.sync_data()?;
        unfinished.finish(&name)?;
        sweep::sweep(&self.folder, self.size, metrics)
    }

    fn name(&self, hash: &Hash) -> String {
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hash}-{:016x}{ENTRY}", self.tag)
    }

    /// The HMAC of an entry. The bytes that are read for it are copied to `copy`.
    fn mac(&self, name: &str, mut code: impl Read, copy: &mut impl Write) -> io::Result<hmac::Tag> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.as_bytes());
        let mut piece = vec![0; PIECE];
        loop {
            let read = code.read(&mut piece)?;
            let Some(bytes @ [_, ..]) = piece.get(..read) else { return Ok(context.sign()) };
            context.update(bytes);
            copy.write_all(bytes)?;
        }
    }
}

/// Reads a file from a position of its own, whatever the handle's position is.
struct Positioned<'f> {
    file: &'f File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The folder's key. If there is none that can be trusted it is made, and what was kept under an older key is compiled
/// again.
fn key(folder: &OwnedFd) -> Result<[u8; MAC_BYTES], Distrust> {
    match read_key(folder) {
        Ok(key) => return Ok(key),
        Err(error) if error.is_absence() => {}
        Err(error) => {
            tracing::warn!(%error, "the key of the cache of compiled code is replaced");
            unlinkat(folder, KEY, AtFlags::empty())?;
        }
    }
    let mut key = [0; MAC_BYTES];
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let unfinished = Unfinished::create(folder)?;
    (&unfinished.file).write_all(&key)?;
    unfinished.file.sync_data()?;
    // Linked, not renamed: if two hosts start at once, the first key stays and both use it.
    match linkat(folder, &unfinished.name, folder, KEY, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => read_key(folder),
        Err(error) => Err(error.into()),
    }
}

fn read_key(folder: &OwnedFd) -> Result<[u8; MAC_BYTES], Distrust> {
    let file = open(folder, KEY)?;
    if check(&file, FileType::RegularFile)? != MAC_BYTES as u64 {
        return Err(Distrust::Mac);
    }
    let mode = file.metadata()?.mode();
    // A user who can read the key can make entries.
    if mode & 0o077 != 0 {
        return Err(Distrust::Mode(mode & 0o7777));
    }
    let mut key = [0; MAC_BYTES];
    (&file).read_exact(&mut key).map_err(|_| Distrust::Mac)?;
    Ok(key)
}

fn open(folder: &OwnedFd, name: &str) -> Result<File, Distrust> {
    // With `NONBLOCK`, opening a pipe does not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?.into())
}

/// Checks the cache's folder. A group's right to write is taken away: Kubernetes gives it to the group of `fsGroup`
/// each time it mounts a volume. The key goes, too: the group could have put a file in its place whose content it
/// knows.
fn check_folder(folder: &File, path: &Path) -> Result<(), Distrust> {
    match check(folder, FileType::Directory) {
        Err(Distrust::Mode(mode)) if mode & 0o002 == 0 => {
            fchmod(folder, Mode::from_raw_mode(mode & !0o020)).map_err(|_| Distrust::Mode(mode))?;
            match unlinkat(folder, KEY, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            tracing::warn!(
                folder = %path.display(), mode = format!("{mode:o}"),
                "a group could write to the cache of compiled code; its right is taken away, and everything is \
                 compiled again (with Kubernetes' fsGroup, set fsGroupChangePolicy to OnRootMismatch)"
            );
            check(folder, FileType::Directory).map(drop)
        }
        Err(Distrust::Owner(user)) => Err(Distrust::FolderOwner(user)),
        checked => checked.map(drop),
    }
}

/// Checks that an open file is of this kind and belongs to this user, and that nobody else may write to it. Returns its
/// length in bytes.
fn check(file: &File, kind: FileType) -> Result<u64, Distrust> {
    let metadata = file.metadata()?;
    if FileType::from_raw_mode(metadata.mode()) != kind {
        return Err(Distrust::Kind);
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(Distrust::Owner(metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(Distrust::Mode(metadata.mode() & 0o7777));
    }
    Ok(metadata.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        fs,
        io::Seek,
        os::unix::fs::PermissionsExt,
        path::PathBuf,
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{component::load::unfinished::UNFINISHED, metrics::Metrics};

    /// A folder that is removed after the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("edge-relay-cache-{name}-{}", std::process::id())))
        }

        fn open(&self, tag: u64, size: u64) -> Cache {
            Cache::open(&self.0, tag, size).unwrap()
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count() - 1 // the key
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    fn code(bytes: &[u8]) -> Trusted {
        let mut file = File::from(rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        Trusted::vouched(file)
    }

    /// The bytes of an entry without its HMAC.
    fn content(entry: &Trusted) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut file = entry.file();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes.truncate(bytes.len() - MAC_BYTES);
        bytes
    }

    #[test]
    fn an_entry_is_found_with_its_key_and_the_same_engine() {
        let folder = Folder::new("put");
        let metrics = Arc::new(Metrics::new()).code();
        let cache = folder.open(1, 1 << 20);
        let bytes: Vec<u8> = (0..=255).cycle().take(PIECE * 2 + 7).collect();
        assert!(cache.get(&[1; 32]).unwrap().is_none());
        for bytes in [&bytes[..], b"", &bytes] {
            cache.put(&[1; 32], &code(bytes), &metrics).unwrap();
            assert!(content(&cache.get(&[1; 32]).unwrap().unwrap()) == bytes);
        }
        assert!(content(&folder.open(1, 1 << 20).get(&[1; 32]).unwrap().unwrap()) == bytes);
        assert!(folder.open(2, 1 << 20).get(&[1; 32]).unwrap().is_none());
        assert!(cache.get(&[2; 32]).unwrap().is_none());
        assert_eq!(folder.entries(), 1, "something unfinished is left");
    }

    #[test]
    fn no_byte_of_an_entry_can_be_another() {
        let folder = Folder::new("bytes");
        let cache = folder.open(1, 1 << 20);
        cache.put(&[1; 32], &code(b"some code"), &Arc::new(Metrics::new()).code()).unwrap();
        let path = folder.0.join(cache.name(&[1; 32]));
        let bytes = fs::read(&path).unwrap();
        for nth in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[nth] ^= 0x80;
            fs::write(&path, changed).unwrap();
            assert!(matches!(cache.get(&[1; 32]), Err(Distrust::Mac)), "byte {nth}");
            fs::write(&path, &bytes[..nth]).unwrap();
            assert!(matches!(cache.get(&[1; 32]), Err(Distrust::Mac)), "cut at {nth}");
        }
        fs::write(&path, &bytes).unwrap();
        assert!(cache.get(&[1; 32]).is_ok());
    }

    #[test]
    fn the_longest_unused_makes_room() {
        let folder = Folder::new("sweep");
        let metrics = Arc::new(Metrics::new()).code();
        let cache = folder.open(1, 3 * (1000 + MAC_BYTES as u64));
        for nth in 0..3 {
            cache.put(&[nth; 32], &code(&[nth; 1000]), &metrics).unwrap();
        }
        // The times make the first entry the oldest, until it is used.
        for nth in 0..3 {
            let entry = File::open(folder.0.join(cache.name(&[nth; 32]))).unwrap();
            entry.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(nth))).unwrap();
        }
        assert!(cache.get(&[0; 32]).unwrap().is_some());
        cache.put(&[3; 32], &code(&[3; 1000]), &metrics).unwrap();
        let there: Vec<_> = (0..4).filter(|nth| cache.get(&[*nth; 32]).unwrap().is_some()).collect();
        assert_eq!(there, [0, 2, 3]);
        assert_eq!(metrics.removed.get(), 1);
    }

    #[test]
    fn what_a_killed_process_left_unfinished_goes() {
        let folder = Folder::new("unfinished");
        let cache = folder.open(1, 1 << 20);
        let file = |name: &str| folder.0.join(format!("{UNFINISHED}{name}"));
        fs::write(file("old"), "half").unwrap();
        File::open(file("old")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::write(file("new"), "half").unwrap();
        cache.put(&[1; 32], &code(b"code"), &Arc::new(Metrics::new()).code()).unwrap();
        assert!(!file("old").exists() && file("new").exists());
    }

    #[test]
    fn a_folder_that_others_reach_is_repaired_or_not_used_and_a_key_is_replaced() {
        let folder = Folder::new("modes");
        let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let cache = folder.open(1, 1 << 20);
        cache.put(&[1; 32], &code(b"code"), &Arc::new(Metrics::new()).code()).unwrap();
        mode(folder.0.clone(), 0o702);
        assert!(matches!(Cache::open(&folder.0, 1, 1), Err(Distrust::Mode(0o702))));
        mode(folder.0.clone(), 0o2770);
        assert!(matches!(folder.open(1, 1).get(&[1; 32]), Err(Distrust::Mac)));
        assert_eq!(folder.0.metadata().unwrap().mode() & 0o7777, 0o2750);
        let key = fs::read(folder.0.join(KEY)).unwrap();
        mode(folder.0.join(KEY), 0o640);
        assert!(matches!(folder.open(1, 1).get(&[1; 32]), Err(Distrust::Mac)));
        let replaced = fs::read(folder.0.join(KEY)).unwrap();
        assert!(replaced.len() == MAC_BYTES && replaced != key);
        // So is one that was cut, or that is another file: its beginning may be known.
        for length in [MAC_BYTES - 1, MAC_BYTES + 1] {
            fs::write(folder.0.join(KEY), vec![b'k'; length]).unwrap();
            folder.open(1, 1);
            assert_eq!(fs::read(folder.0.join(KEY)).unwrap().len(), MAC_BYTES);
        }
    }
}
