//! Returns memory to the system that the allocator keeps for later.

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
