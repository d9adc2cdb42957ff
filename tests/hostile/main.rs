//! Tests what tenants can do to each other: hostile components, each beside a tenant that must not notice.
//!
//! That tenant is the neighbour. It is at half load: its 33,000 deliveries a second take about half of what one shard's
//! thread can do, as built for tests, on a core that has nothing else to do. The 99th percentile of their latency is
//! taken in three windows: before the attack, during it and after it. During the attack it must stay within twice the
//! larger of the other two. These tests are a program of their own and run one after another, so that they do not
//! measure each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)] // Other tests use more of it.
#[path = "../support/lib.rs"]
mod support;

mod bombs;
mod scene;

mod api;
mod client;
mod filter;
mod job;
mod start;
