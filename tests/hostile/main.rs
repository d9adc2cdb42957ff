//! Tests what tenants can do to each other: hostile components, each beside a tenant that must not notice.
//!
//! That tenant is at half load. Its 33,000 deliveries a second take about half of what one shard's thread can do, as
//! built for tests, on a core that has nothing else to do. The 99th percentile of their latency is measured in a window
//! without the attack and in one during it. If it is higher during the attack, it is measured without it once more. It
//! must stay within twice the value without the attack. These tests are a separate program and run one after another,
//! so that they measure only themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod scene;

mod api;
mod client;
mod filter;
mod job;
mod memory;
mod start;
