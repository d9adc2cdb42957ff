//! Makes room in the cache: entries that have been unused for longest go first.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use rustix::fs::{AtFlags, Dir, statat, unlinkat};

use crate::{
    component::load::{cache::ENTRY, unfinished::UNFINISHED},
    metrics::CodeMetrics,
};

/// No write takes this long. An unfinished file that is older comes from a process that was killed.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);

/// Removes entries until the rest have at most `size` bytes together. Code that is mapped stays until it is unmapped.
pub fn sweep(folder: &OwnedFd, size: u64, metrics: &CodeMetrics) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let begins = name.to_bytes().starts_with(UNFINISHED.as_bytes());
        if !begins && !name.to_bytes().ends_with(ENTRY.as_bytes()) {
            continue;
        }
        // Another host with the same folder may have removed it.
        let Ok(found) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let (seconds, nanoseconds) = (u64::try_from(found.st_mtime), u32::try_from(found.st_mtime_nsec));
        let used = Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default());
        if !begins {
            entries.push((used, u64::try_from(found.st_size).unwrap_or_default(), name.to_owned()));
        } else if SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + used).is_ok_and(|age| age > UNFINISHED_FOR)
        {
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }
    entries.sort();
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, name) in entries {
        if total <= size {
            break;
        }
        if unlinkat(folder, &name, AtFlags::empty()).is_ok() {
            metrics.removed.inc();
        }
        total = total.saturating_sub(bytes);
    }
    Ok(())
}
