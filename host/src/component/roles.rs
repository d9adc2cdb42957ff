//! The roles of components: filter, client handler, API, job.

pub mod api;
pub mod client;
pub mod filter;
pub mod job;
