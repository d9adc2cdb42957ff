//! Tests what tenants can do to each other: hostile components and partners, each beside a tenant that must not notice.
//!
//! That tenant has a client that gets a hundred messages a second, an API call every 20 ms and a new client every 100
//! ms. Their latencies are measured in pairs of windows: beside an honest tenant, and beside the attack, with as much
//! of the processor. The median of the ratios of the 99th percentiles must be at most two. A few pairs of short windows
//! are enough for every day; `HOSTILE=full` makes seven pairs of three seconds, with every size of the floods. These
//! tests are a separate program and run one after another, so that they measure only themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod flood;
mod giving;
mod honest;
mod neighbour;
mod scene;
mod senders;

mod admin;
mod api;
mod asking;
mod client;
mod crowding;
mod filter;
mod job;
mod memory;
mod sending;
mod start;
