//! Returns memory to the system that the allocator keeps for later, and what takes long to return where nobody waits.

use std::{
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

use bytes::Bytes;

/// Bytes from which on a block of memory is a mapping of its own, which goes back to the system when it is freed. glibc
/// begins with this number and raises it to 32 MiB by itself. Then large messages are moved about as they grow, and
/// leave holes that nobody else fits into: memory that no tenant's account has.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING: libc::c_int = 128 << 10;
/// Bytes of free memory at the end of a heap that stay with the process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_FREE: libc::c_int = 512 << 10;

/// Has large blocks of memory go back to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn return_large_blocks() {
    // SAFETY: it takes no pointer, and sets numbers that the allocator reads (mallopt(3)).
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_FREE);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_large_blocks() {}

/// Returns all free memory. This takes some milliseconds, so it must not run on a thread that others wait for.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn trim() {
    // SAFETY: it takes no pointer and touches nothing that is in use; glibc lets any thread call it at any time
    // (malloc_trim(3): MT-Safe).
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn trim() {}

/// Bytes of a block that takes long to be given back: about a tenth of a millisecond.
const LARGE: usize = 1 << 20;

/// Drops bytes, and if they are many on another thread. Giving tens of mebibytes back to the system takes milliseconds,
/// which nobody has who serves others.
pub fn drop_later(bytes: Bytes) {
    static DROPS: OnceLock<Option<Sender<Bytes>>> = OnceLock::new();
    if bytes.len() < LARGE {
        return;
    }
    let start = || {
        let (drops, dropped) = channel();
        let run = move || dropped.iter().for_each(drop::<Bytes>);
        // Without the thread they are dropped here.
        thread::Builder::new().name("drop".into()).spawn(run).is_ok().then_some(drops)
    };
    if let Some(drops) = DROPS.get_or_init(start) {
        // It never ends. If it did, they would be dropped here.
        drop(drops.send(bytes));
    }
}
