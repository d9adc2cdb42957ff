//! From a file of WebAssembly to linked code: checked, compiled once for each content, kept in a cache on disk.

pub mod cache;
pub mod compile;
pub mod engine;
pub mod inspect;
mod library;
mod trusted;
