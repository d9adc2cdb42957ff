//! Edge Relay: one upstream connection, any number of clients, the tenant's WASM components in between.
//!
//! The modules, in the order data flows: an [`upstream`] receives messages, a [`component`] filters them, a [`channel`]
//! logs them, and shards write them to each [`client`]. The [`api`] stands beside that road.

pub mod upstream;

pub mod component;

pub mod channel;

pub mod client;

pub mod api;

pub mod admin;
pub mod command;
pub mod config;
pub mod demand;
pub mod feed;
pub mod grants;
pub mod http_error;
mod memory;
/// The locks of what `tests/loom` compiles with others.
mod sync {
    pub use std::sync::{Mutex, PoisonError};
}
pub mod metrics;
pub mod rate;
pub mod relay;
pub mod routes;
pub mod shutdown;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod tenants;
mod tls;
