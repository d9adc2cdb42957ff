//! Reads and writes files, by absolute paths in the folders that the guest was given.

use wasip2::filesystem::{
    preopens::get_directories,
    types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags},
};

/// More bytes than any file of the tests has, to read a whole file.
const ALL: u64 = 1 << 20;

type Done = Result<String, String>;

pub fn folders() -> String {
    let mut names: Vec<_> = get_directories().into_iter().map(|(_, name)| name).collect();
    names.sort();
    names.join(" ")
}

/// The folder that a path is in, and the rest of the path.
fn within(path: &str) -> Result<(Descriptor, &str), String> {
    let rest = |folder: &str| path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    let mut found = get_directories().into_iter().filter_map(|(folder, name)| Some((folder, rest(&name)?)));
    found.next().ok_or_else(|| "no folder".to_owned())
}

fn shown(error: ErrorCode) -> String {
    error.name().to_owned()
}

pub fn read(path: &str) -> Done {
    let (folder, path) = within(path)?;
    let file = folder.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), DescriptorFlags::READ);
    let (bytes, _) = file.and_then(|file| file.read(ALL, 0)).map_err(shown)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn list(path: &str) -> Done {
    let (folder, path) = within(path)?;
    let opened = folder.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::DIRECTORY, DescriptorFlags::READ);
    let entries = opened.and_then(|folder| folder.read_directory()).map_err(shown)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.read_directory_entry().map_err(shown)? {
        names.push(entry.name);
    }
    names.sort();
    Ok(names.join(" "))
}

/// Begins many listings of a folder, and keeps them all.
pub fn listings(path: &str, count: u64) -> Done {
    let (folder, path) = within(path)?;
    let opened = folder.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::DIRECTORY, DescriptorFlags::READ);
    let folder = opened.map_err(shown)?;
    for _ in 0..count {
        let listing = folder.read_directory().map_err(shown)?;
        listing.read_directory_entry().map_err(shown)?;
        std::mem::forget(listing);
    }
    Ok("kept".to_owned())
}

/// Opens a file many times, and keeps all handles.
pub fn open(path: &str, count: u64) -> Done {
    let (folder, path) = within(path)?;
    for _ in 0..count {
        let file = folder.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), DescriptorFlags::READ);
        std::mem::forget(file.map_err(shown)?);
    }
    Ok("kept".to_owned())
}

pub fn write(path: &str, text: &str) -> Done {
    let (folder, path) = within(path)?;
    let how = OpenFlags::CREATE | OpenFlags::TRUNCATE;
    let file = folder.open_at(PathFlags::SYMLINK_FOLLOW, path, how, DescriptorFlags::WRITE);
    file.and_then(|file| file.write(text.as_bytes(), 0)).map_err(shown)?;
    Ok("written".to_owned())
}

pub fn remove(path: &str) -> Done {
    let (folder, path) = within(path)?;
    folder.unlink_file_at(path).map_err(shown)?;
    Ok("removed".to_owned())
}

pub fn link(path: &str, to: &str) -> Done {
    let (folder, path) = within(path)?;
    folder.symlink_at(to, path).map_err(shown)?;
    Ok("linked".to_owned())
}

/// Renames a file. The host allows it within one folder.
pub fn rename(path: &str, to: &str) -> Done {
    let ((folder, path), (other, to)) = (within(path)?, within(to)?);
    folder.rename_at(path, &other, to).map_err(shown)?;
    Ok("renamed".to_owned())
}
