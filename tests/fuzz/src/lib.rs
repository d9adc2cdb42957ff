//! What is done with fuzzed input: one function a target, which panics when what should hold does not.
//!
//! `libfuzzer` calls them with what it invents, the test `corpus` with the files of the corpus. The host's sources are
//! compiled here, not linked: with the whole host, each fuzzing would first build wasmtime under the sanitizers.
#![cfg(not(test))] // The tests of those sources are the host's.

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

#[allow(dead_code, unused_imports)] // What no target calls.
#[path = "../../../host/src"]
mod host {
    #[path = "client"]
    pub mod client {
        #[path = "centrifuge"]
        pub mod centrifuge {
            pub mod command;
        }
        pub mod deflate;
        pub mod frame;
        pub mod message;
    }
    pub mod config;
    pub mod grants;
    pub mod state;
}

use host::{client, grants, state};

/// As in the host, where its file has more.
mod channel {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Position {
        pub epoch: Epoch,
        pub offset: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Epoch(u64);

    impl std::str::FromStr for Epoch {
        type Err = std::num::ParseIntError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            u64::from_str_radix(text, 16).map(Self)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        Text,
        Binary,
    }
}

/// As in the host, where its file has more.
#[allow(dead_code)]
mod store {
    #[derive(Clone, Debug)]
    pub struct StoreConfig {
        pub file: std::path::PathBuf,
        pub size: u64,
        pub mysql: Option<mysql_async::Opts>,
    }

    impl StoreConfig {
        pub const SIZE: u64 = 1 << 30;
    }
}
