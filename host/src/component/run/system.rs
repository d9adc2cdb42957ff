//! What the operating system has refused, as errors of wasmtime tell it.

use std::io;

use rustix::io::Errno;
use wasmtime::error::OutOfMemory;

/// The system's refusal that an error comes from. `None`: the system has refused nothing.
pub fn refusal(error: &wasmtime::Error) -> Option<Errno> {
    if error.is::<OutOfMemory>() {
        return Some(Errno::NOMEM);
    }
    error.chain().find_map(|cause| {
        let of_io = || cause.downcast_ref::<io::Error>().and_then(Errno::from_io_error);
        cause.downcast_ref::<Errno>().copied().or_else(of_io)
    })
}

/// Whether the system had no more memory, address space or mappings for the host.
pub fn is_out_of_memory(error: &wasmtime::Error) -> bool {
    refusal(error) == Some(Errno::NOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_behind_what_was_said_about_it() {
        let refused = wasmtime::Error::from(Errno::NOMEM).context("no memory").context("no instance");
        assert!(is_out_of_memory(&refused));
        let opened = wasmtime::Error::from(io::Error::from(Errno::NOENT)).context("not opened");
        assert_eq!(refusal(&opened), Some(Errno::NOENT));
        assert!(is_out_of_memory(&wasmtime::Error::from(io::Error::from(Errno::NOMEM))));
        // What a guest says is no refusal of the system's.
        assert_eq!(refusal(&wasmtime::Error::msg("Cannot allocate memory (os error 12)")), None);
        assert_eq!(refusal(&wasmtime::Error::from(wasmtime::Trap::UnreachableCodeReached)), None);
    }
}
