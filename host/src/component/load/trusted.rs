//! Maps machine code that the cache or the compiler has vouched for: the one place where loading code is unsafe.
//!
//! Loading precompiled code is unsafe: its author decides what the host executes. So the file must come from
//! [`wasmtime::Engine::precompile_component`], and it must not change for as long as the code is in use: the file is
//! mapped, and instances are made from it.
#![allow(unsafe_code)]

use std::{fs::File, os::fd::AsRawFd};

use wasmtime::{Engine, component::Component};

/// A file with code that this program has compiled and nobody else can change.
pub struct Trusted(File);

impl Trusted {
    /// The caller vouches for the file. There are two callers. [`super::compile`] has the code from its own child, or
    /// from a file that was vouched for, in a file of [`super::nameless`] that it has sealed. Where the system has no
    /// seals, nobody else can open that file. [`super::cache`] has checked, through this very handle, that the bytes
    /// are what it once wrote, which nobody can forge without the key. It has also checked that the file belongs to the
    /// process's user and that nobody else may write to it. It never writes to a file that has its final name.
    pub fn vouched(file: File) -> Self {
        Self(file)
    }

    pub fn file(&self) -> &File {
        &self.0
    }

    /// Maps the code.
    pub fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // Opened by its descriptor, for a name could lead to another file by now.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        // SAFETY: the bytes come from `precompile_component`, and they do not change while they are mapped. The caller
        // of `vouched` vouches for both. wasmtime checks that the engine's configuration is the same. Other processes
        // of this user, and root, could write to the file; they could as well write to this process's memory.
        unsafe { Component::deserialize_file(engine, path) }
    }
}
