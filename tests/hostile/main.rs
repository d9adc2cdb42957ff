//! Tests what tenants can do to each other: hostile components, each beside a tenant that must not notice.
//!
//! That tenant is at half load: its 33,000 deliveries a second take some half of what one shard's thread can do, as
//! built for tests, on a core that has nothing else to do. The 99th percentile of their latency is taken in windows
//! without the attack, during it, and, if it is higher, without it again, and must stay within twice what it is
//! without. These tests are a program of their own and run one after another, so that they measure nobody but each
//! other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod scene;

mod api;
mod client;
mod filter;
mod job;
mod start;
