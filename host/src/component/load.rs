//! Loads components: a `.wasm` file becomes linked code. Each content is checked and compiled once, and kept on disk.

pub mod cache;
pub mod compile;
pub mod engine;
pub mod file;
pub mod inspect;
mod library;
mod machine;
mod nameless;
mod trusted;
mod unfinished;
