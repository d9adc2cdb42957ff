//! Files and folders that guests open beneath what they are granted.
//!
//! wasmtime's own `open-at` waits for the other side of a pipe, on a thread that nobody gets back, and its
//! `read-directory` keeps the whole listing of a folder in memory. The functions here take their place. A guest gets a
//! regular file or a folder, which counts as one of the tenant's open files for as long as it is open. A listing is
//! read part by part.

use std::{collections::VecDeque, fs::File, io, mem::MaybeUninit, os::fd::AsFd, path::PathBuf, sync::Arc};

use config::{How, OpenError, open_beneath};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, statat};
use wasmtime::{
    Result, StoreContextMut,
    component::{Linker, Resource, ResourceTable, ResourceType},
};
use wasmtime_wasi::{
    filesystem::{self, Descriptor, Dir, OpenMode},
    p2::{
        FsResult,
        bindings::filesystem::types::{
            DescriptorFlags, DescriptorType, DirectoryEntry, ErrorCode, OpenFlags, PathFlags,
        },
    },
    runtime::spawn_blocking,
};

use crate::{
    account::{Charge, Part},
    component::run::host::Host,
};

/// The interface's name in wasmtime's linker, whichever version 0.2 a guest is built for. Under another name, no guest
/// would call the functions here.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

/// Bytes of a folder that are read at once.
const BATCH: usize = 8 << 10;
/// Bytes of memory that a listing takes: its entries of one batch, each with a name of its own.
const LISTING: usize = 64 << 10;

/// The result that a guest gets.
type Answer<T> = (std::result::Result<T, ErrorCode>,);

/// A folder that a guest is listing.
struct Listing {
    folder: Arc<File>,
    /// What was read and not given to the guest yet. `None`: a name is not UTF-8.
    entries: VecDeque<Option<DirectoryEntry>>,
    is_read: bool,
    _charge: Charge,
}

/// Replaces wasmtime's functions in the linker with those of this module.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(INTERFACE)?;
    types.resource("directory-entry-stream", ResourceType::host::<Listing>(), |mut store, listing| {
        store.data_mut().table().delete(Resource::<Listing>::new_own(listing))?;
        Ok(())
    })?;
    types.func_wrap_async("[method]descriptor.open-at", |store, parameters| Box::new(open_at(store, parameters)))?;
    types.func_wrap_async("[method]descriptor.read-directory", |store, (folder,)| {
        Box::new(async move { answer(read_directory(store, folder).await) })
    })?;
    types.func_wrap_async("[method]directory-entry-stream.read-directory-entry", |store, (listing,)| {
        Box::new(async move { answer(next_entry(store, listing).await) })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What a guest gets. An error that is not for it is a trap.
fn answer<T>(result: FsResult<T>) -> Result<Answer<T>> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

type OpenAt = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);

async fn open_at(
    store: StoreContextMut<'_, Host>,
    (folder, path_flags, path, open_flags, flags): OpenAt,
) -> Result<Answer<Resource<Descriptor>>> {
    answer(open(store, folder, path_flags, path.into(), open_flags, flags).await)
}

async fn open(
    mut store: StoreContextMut<'_, Host>,
    folder: Resource<Descriptor>,
    path_flags: PathFlags,
    path: PathBuf,
    open_flags: OpenFlags,
    flags: DescriptorFlags,
) -> FsResult<Resource<Descriptor>> {
    let folder = folder_of(store.data_mut().table(), &folder)?;
    let (how, mode) = how(path_flags, open_flags, flags)?;
    let perms = folder.perms;
    if perms.write_not_permitted() && mode.contains(OpenMode::WRITE) {
        return Err(ErrorCode::NotPermitted.into());
    }
    check_room(store.data())?;
    let opened = spawn_blocking(move || {
        let file = open_beneath(folder.dir.as_fd(), &path, how)?;
        let is_folder = file.metadata()?.is_dir();
        Ok::<_, OpenError>((file, is_folder))
    });
    let (file, is_folder) = opened.await.map_err(error_code)?;
    let (descriptor, file) = if is_folder {
        let folder = Dir::new(file, perms, mode, false);
        let file = Arc::clone(&folder.dir);
        (Descriptor::Dir(folder), file)
    } else {
        let opened = filesystem::File::new(file, perms, mode, false);
        let file = Arc::clone(&opened.file);
        (Descriptor::File(opened), file)
    };
    store.data().tenant().process.opened(&file);
    Ok(store.data_mut().table().push(descriptor)?)
}

/// The system's flags for what a guest asks, and what the descriptor may then do. As in wasmtime's own function, what
/// is not opened for writing is opened for reading.
fn how(path: PathFlags, open: OpenFlags, flags: DescriptorFlags) -> std::result::Result<(How, OpenMode), ErrorCode> {
    let synchronous = DescriptorFlags::FILE_INTEGRITY_SYNC
        | DescriptorFlags::DATA_INTEGRITY_SYNC
        | DescriptorFlags::REQUESTED_WRITE_SYNC;
    if flags.intersects(synchronous) {
        return Err(ErrorCode::Unsupported);
    }
    let makes = open.intersects(OpenFlags::CREATE | OpenFlags::EXCLUSIVE | OpenFlags::TRUNCATE);
    if makes && open.contains(OpenFlags::DIRECTORY) {
        return Err(ErrorCode::Invalid);
    }
    let asks_to_write = flags.contains(DescriptorFlags::WRITE);
    let writes = asks_to_write || open.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE);
    let reads = flags.contains(DescriptorFlags::READ) || !asks_to_write;
    let (access, mode) = match (reads, writes) {
        (true, true) => (OFlags::RDWR, OpenMode::READ | OpenMode::WRITE),
        (false, true) => (OFlags::WRONLY, OpenMode::WRITE),
        (_, false) => (OFlags::RDONLY, OpenMode::READ),
    };
    let mut system = access;
    system.set(OFlags::CREATE, open.contains(OpenFlags::CREATE));
    system.set(OFlags::EXCL, open.contains(OpenFlags::CREATE) && open.contains(OpenFlags::EXCLUSIVE));
    system.set(OFlags::TRUNC, open.contains(OpenFlags::TRUNCATE));
    system.set(OFlags::DIRECTORY, open.contains(OpenFlags::DIRECTORY));
    system.set(OFlags::NOFOLLOW, !path.contains(PathFlags::SYMLINK_FOLLOW));
    let made = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
    let made = if open.contains(OpenFlags::CREATE) { made } else { Mode::empty() };
    Ok((How { flags: system, mode: made }, mode))
}

async fn read_directory(
    mut store: StoreContextMut<'_, Host>,
    folder: Resource<Descriptor>,
) -> FsResult<Resource<Listing>> {
    let folder = folder_of(store.data_mut().table(), &folder)?;
    // A handle of its own, whose position is the listing's.
    let how = How { flags: OFlags::RDONLY | OFlags::DIRECTORY, mode: Mode::empty() };
    check_room(store.data())?;
    let opened = spawn_blocking(move || open_beneath(folder.dir.as_fd(), ".".as_ref(), how));
    let folder = Arc::new(opened.await.map_err(error_code)?);
    store.data().tenant().process.opened(&folder);
    let charge = Charge::take(&store.data().tenant().account, Part::Listings, LISTING);
    let charge = charge.ok_or(ErrorCode::InsufficientMemory)?;
    let listing = Listing { folder, entries: VecDeque::new(), is_read: false, _charge: charge };
    Ok(store.data_mut().table().push(listing)?)
}

async fn next_entry(
    mut store: StoreContextMut<'_, Host>,
    listing: Resource<Listing>,
) -> FsResult<Option<DirectoryEntry>> {
    loop {
        let listed = store.data_mut().table().get_mut(&listing)?;
        if let Some(entry) = listed.entries.pop_front() {
            return entry.map(Some).ok_or(ErrorCode::IllegalByteSequence.into());
        }
        if listed.is_read {
            return Ok(None);
        }
        let folder = Arc::clone(&listed.folder);
        let batch = spawn_blocking(move || batch(&folder)).await?;
        let listed = store.data_mut().table().get_mut(&listing)?;
        listed.is_read = batch.is_none();
        listed.entries.extend(batch.into_iter().flatten());
    }
}

/// Reads on in a folder. `None`: it is read to its end.
fn batch(folder: &File) -> io::Result<Option<Vec<Option<DirectoryEntry>>>> {
    let mut buffer = [MaybeUninit::uninit(); BATCH];
    let mut read = RawDir::new(folder, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = read.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let kind = match entry.file_type() {
                FileType::Unknown => statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |found| FileType::from_raw_mode(found.st_mode)),
                kind => kind,
            };
            let entry = |name: &str| DirectoryEntry { type_: descriptor_type(kind), name: name.to_owned() };
            entries.push(name.to_str().ok().map(entry));
        }
        if read.is_buffer_empty() {
            return Ok(Some(entries));
        }
    }
    Ok(None)
}

fn descriptor_type(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::Unknown => DescriptorType::Unknown,
    }
}

fn folder_of(table: &mut ResourceTable, folder: &Resource<Descriptor>) -> FsResult<Dir> {
    match table.get(folder)? {
        Descriptor::Dir(folder) => Ok(folder.clone()),
        Descriptor::File(_) => Err(ErrorCode::NotDirectory.into()),
    }
}

/// Checks that the tenant may have another file open, before it is opened: a file must not be made or emptied in vain.
fn check_room(host: &Host) -> FsResult<()> {
    if host.tenant().process.has_room_for_file() {
        return Ok(());
    }
    host.tenant().metrics.limited("open-files", 1);
    Err(ErrorCode::Quota.into())
}

fn error_code(error: OpenError) -> ErrorCode {
    match error {
        OpenError::LeadsOut => ErrorCode::NotPermitted,
        OpenError::NotAFile => ErrorCode::Unsupported,
        OpenError::Io(error) => error.into(),
    }
}
