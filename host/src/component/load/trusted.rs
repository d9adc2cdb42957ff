//! Machine code that may be run: the one place where that is decided.
//!
//! Loading precompiled code is unsafe, since whoever writes it writes what the host executes. So the file must be what
//! [`wasmtime::Engine::precompile_component`] has made, and must stay as it is for as long as the code is there: it is
//! mapped, and instances are made from it.
#![allow(unsafe_code)]

use std::{fs::File, os::fd::AsRawFd};

use wasmtime::{Engine, component::Component};

/// A file with code that this program has compiled and nobody else can change.
pub struct Trusted(File);

impl Trusted {
    /// The caller vouches for the file. There are two of them. [`super::compile`] has the code from its own child, in a file in
    /// memory that is sealed. [`super::cache`] has checked over this very open file that its bytes are what it once wrote,
    /// which nobody can forge without the key, and that it belongs to the process's user and nobody else may write to it;
    /// it never writes to a file that has its final name.
    pub fn vouched(file: File) -> Self {
        Self(file)
    }

    pub fn file(&self) -> &File {
        &self.0
    }

    /// Maps the code.
    pub fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // By its descriptor: a name could lead to another file by now.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        // SAFETY: its bytes come from `precompile_component`, and they do not change while they are mapped: whoever made
        // this vouches for both. That the engine's configuration is the same is checked by wasmtime. What remains is that
        // this user's other processes, or root, write to the file: they could as well write to this process's memory.
        unsafe { Component::deserialize_file(engine, path) }
    }
}
