//! What is done with fuzzed input: one function a target, which panics when what should hold does not.
//!
//! `libfuzzer` calls them with what it invents, the test `corpus` with the files of the corpus. They link
//! the crates `wire` and `config` and not the host: with that, each fuzzing would first build wasmtime under the
//! sanitizers.

mod centrifuge;
mod frame;
mod inflate;
mod manifest;

pub use centrifuge::centrifuge;
pub use frame::frame;
pub use inflate::inflate;
pub use manifest::manifest;

pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus` and of its file in `libfuzzer/fuzz_targets`.
pub const TARGETS: [(&str, Target); 4] =
    [("centrifuge", centrifuge), ("frame", frame), ("inflate", inflate), ("manifest", manifest)];
