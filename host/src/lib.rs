//! Edge Relay: one upstream connection, any number of clients, the tenant's WASM components in between.
//!
//! The modules are listed from the lowest floor to the highest. The crate [`wire`] has the wire formats, the crate
//! [`config`] the configuration. `ARCHITECTURE.md` has the code map and says which module must never import which.

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
/// Tells tasks to stop, by signal or by a trigger.
mod shutdown;
/// A mutex that ignores poison.
mod sync;
/// Sets up the log.
mod telemetry;
/// TLS for connections that the relay opens.
mod tls;

/// Which upstreams and channels clients need now.
mod demand;
/// A tenant's key-value data in memory.
mod state;
/// Records: rows on disk, and their way to MySQL.
mod store;

/// Channels: logs of publications, snapshots, history.
mod channel;
/// Tenants' WebAssembly: loads it, runs it, gives it imports, calls its roles.
mod component;
/// Shards: the threads that write to clients' sockets.
mod delivery;
/// The unit of isolation, and its limits at run time.
mod tenant;
/// Connections to partners' WebSocket servers.
mod upstream;

/// The admin listener.
mod admin;
/// The API listener.
mod api;
/// The clients' listener: handshakes, admission, reading channels over HTTP.
mod entry;
/// Which tenant a request is for.
mod routes;

/// A WebSocket server that plays a partner.
mod feed;
/// Starts everything in order, and stops it in order.
mod relay;
/// All tenants: loads, changes and removes them while clients stay connected.
mod tenants;

/// The commands of the program.
pub mod command;
