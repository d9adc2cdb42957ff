//! Reads a `.wasm` file: as much as a host accepts, and of anything else no more than its first bytes.

use std::{fs::File, io, io::Read};

/// Largest `.wasm` accepted, in bytes. A Python component has 18 MB.
const MAX_SIZE: u64 = 64 << 20;
/// Bytes of the preamble, which every binary begins with: the magic number, then version and layer.
const PREAMBLE: u64 = 8;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("has {0} bytes; the most accepted is {MAX_SIZE}; make it smaller, for example without debug information")]
    Size(u64),
    #[error("is not WebAssembly")]
    NotWasm,
}

/// What a binary is, as its preamble says.
/// <https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    CoreModule,
    Component,
}

impl Binary {
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes.strip_prefix(b"\0asm")? {
            [1, 0, 0, 0, ..] => Some(Self::CoreModule),
            [_, _, 1, 0, ..] => Some(Self::Component),
            _ => None,
        }
    }
}

/// Reads a regular file.
pub fn read(file: &File) -> Result<(Binary, Vec<u8>), FileError> {
    let mut bytes = Vec::new();
    file.take(PREAMBLE).read_to_end(&mut bytes)?;
    let binary = Binary::of(&bytes).ok_or(FileError::NotWasm)?;
    let size = file.metadata()?.len();
    if size > MAX_SIZE {
        return Err(FileError::Size(size));
    }
    // The file may grow while it is read.
    file.take(MAX_SIZE - PREAMBLE + 1).read_to_end(&mut bytes)?;
    let size = bytes.len() as u64;
    if size > MAX_SIZE { Err(FileError::Size(size)) } else { Ok((binary, bytes)) }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    /// An empty file without a name.
    fn empty() -> File {
        rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into()
    }

    #[test]
    fn the_first_bytes_say_what_a_file_is() {
        let cases: [(&[u8], Option<Binary>); 5] = [
            (b"\0asm\x01\0\0\0", Some(Binary::CoreModule)),
            (b"\0asm\x0D\0\x01\0and more", Some(Binary::Component)),
            (b"\0asm\x01\0\0", None),
            (b"#!/bin/sh", None),
            (b"", None),
        ];
        for (bytes, binary) in cases {
            let mut file = empty();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            let found = read(&file).ok();
            assert_eq!(found, binary.map(|binary| (binary, bytes.to_vec())));
        }
    }

    #[test]
    fn a_file_over_the_limit_is_not_read() {
        let mut file = empty();
        file.write_all(b"\0asm\x0D\0\x01\0").unwrap();
        for (size, is_read) in [(MAX_SIZE, true), (MAX_SIZE + 1, false), (10 << 30, false)] {
            file.set_len(size).unwrap();
            file.rewind().unwrap();
            match read(&file) {
                Ok((_, bytes)) => assert!(is_read && bytes.len() as u64 == size),
                Err(error) => assert!(!is_read && error.to_string().contains(&format!("has {size} bytes"))),
            }
            assert_eq!(file.stream_position().unwrap(), if is_read { size } else { 8 });
        }
    }
}
