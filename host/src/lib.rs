//! Edge Relay: one upstream connection, any number of clients, the tenant's WASM components in between.
//!
//! The modules stand in the order of the floors of the house, bottom to top. What stands on the wire is in the crate
//! [`wire`], what an operator and a tenant configure in the crate [`config`]. `ARCHITECTURE.md` has the code map and
//! says which module may never import which.

/// Growing pauses with jitter between attempts.
mod backoff;
/// HTTP answers in one JSON shape.
mod http_error;
/// Gives freed memory back to the system.
mod memory;
/// Counters, gauges and histograms, and their text for Prometheus.
mod metrics;
/// Token buckets for the limits that count per second.
mod rate;
/// Accepts connections and serves each in a task.
mod serve;
/// Telling tasks to stop, and waiting for it.
mod shutdown;
/// A mutex that ignores poison.
mod sync;
/// Sets up the log.
mod telemetry;
/// TLS for connections that the relay opens.
mod tls;

/// Who needs an upstream or a channel now.
mod demand;
/// A tenant's key-value data in memory.
mod state;
/// Records: rows on disk, and their way to MySQL.
mod store;

/// Channels: logs of publications, snapshots, history.
mod channel;
/// Tenants' WebAssembly: loaded, run, given imports, called in its roles.
mod component;
/// Shards: the threads that write to clients' sockets.
mod delivery;
/// The unit of isolation, and its limits at run time.
mod tenant;
/// Partners' WebSockets.
mod upstream;

/// The admin listener.
mod admin;
/// The API listener.
mod api;
/// The clients' listener: handshakes, admission, channel readings over HTTP.
mod entry;
/// Which tenant a request is for.
mod routes;

/// A WebSocket server that plays a partner.
mod feed;
/// What starts in which order, and stops in which.
mod relay;
/// All tenants: loaded, changed while clients stay, removed.
mod tenants;

/// The commands of the program.
pub mod command;
