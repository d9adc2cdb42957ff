//! Edge Relay: one upstream connection, any number of clients, the tenant's WASM components in between.
//!
//! The modules are listed in the order of the data: from a partner's socket to the clients' sockets, then what all this
//! belongs to, then tools. The crate [`wire`] has the wire formats, the crate [`config`] the configuration.
//! `ARCHITECTURE.md` has the code map and says which module must never import which.

// The way of a message, from a partner to clients; requests, and what is kept.

// Connections to partners' WebSocket servers.
mod upstream;

// Tenants' WebAssembly: loads it, runs it, gives it imports, calls its roles.
mod component;

// Channels: logs of publications, snapshots, history.
mod channel;

// Shards: the threads that write to clients' sockets.
mod delivery;

// The clients' listener: handshakes, admission, reading channels over HTTP.
mod entry;

// The API listener.
mod api;

// A tenant's key-value data in memory.
mod state;

// Records: rows on disk, and their way to MySQL.
mod store;

// What the parts above belong to, and what runs them.

// The unit of isolation, and its limits at run time.
mod tenant;

// All tenants: loads, changes and removes them while clients stay connected.
mod tenants;

// Which tenant a request is for.
mod routes;

// Which upstreams and channels clients need now.
mod demand;

// Starts everything in order, and stops it in order.
mod relay;

// The admin listener.
mod admin;

// The commands of the program.
pub mod command;

// A WebSocket server that plays a partner.
mod feed;

// Tools with one job.

// Growing pauses with jitter between attempts.
mod backoff;

// TCP connections to one of several addresses.
mod dial;

// The host that an HTTP request is for.
mod host_header;

// HTTP answers in one JSON shape.
mod http_error;

// A tenant's account of the host's memory.
mod account;

// Pools that nobody can empty alone.
mod fair_pool;

// Limits how much of the log a tenant takes.
mod log_lines;

// Gives freed memory back to the system.
mod memory;

// Counters, gauges and histograms, and their text for Prometheus.
mod metrics;

// Shows how far work has come that takes long.
mod progress;

// Token buckets for the limits that count per second.
mod rate;

// Threads with a runtime each.
mod runtime_thread;

// Accepts connections and serves each in a task.
mod serve;

// Tells tasks to stop, by signal or by a trigger.
mod shutdown;

// A mutex that ignores poison.
mod sync;

// Sets up the log.
mod telemetry;

// What a tenant uses of processors and networks, and the rates that bound it.
mod usage;

// TLS for connections that the relay opens.
mod tls;
