//! Returns memory to the system that the allocator keeps for later.

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
