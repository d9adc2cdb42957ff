//! The roles of components: dial, filter, client handler, API, job.

pub mod api;
pub mod client;
pub mod dial;
pub mod filter;
pub mod job;
