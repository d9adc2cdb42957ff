//! The fuzz targets: one function each, which panics when something that should hold does not.
//!
//! `libfuzzer` calls them with inputs that it invents, and the test `corpus` with the files of the corpus. They link
//! the crates `wire` and `config` but not the host. With the host, fuzzing would first have to build wasmtime with the
//! sanitizers.

mod centrifuge;
mod frame;
mod inflate;
mod manifest;
mod server_frame;

pub use centrifuge::centrifuge;
pub use frame::frame;
pub use inflate::inflate;
pub use manifest::manifest;
pub use server_frame::server_frame;

pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus` and of its file in `libfuzzer/fuzz_targets`.
pub const TARGETS: [(&str, Target); 5] = [
    ("centrifuge", centrifuge),
    ("frame", frame),
    ("inflate", inflate),
    ("manifest", manifest),
    ("server_frame", server_frame),
];
