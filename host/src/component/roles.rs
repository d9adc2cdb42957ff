//! What a component is to the host: filter, client handler, API or job.

pub mod api;
pub mod client;
pub mod filter;
pub mod job;
