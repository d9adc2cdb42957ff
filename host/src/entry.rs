//! The clients' listener: from an accepted connection to a client in its shard.
//!
//! There are three transports: plain WebSockets, server-sent events and the Centrifuge protocol. hyper does the HTTP
//! handshake on the I/O runtime (`listener`, `handshake`). The tenant's handler decides which clients are let in
//! (`admission`). Then the bare socket moves to a shard. Channels can also be read over plain HTTP (`history`).

pub mod address;
mod admission;
pub mod centrifuge;
mod claims;
mod context;
mod early_socket;
mod handshake;
mod history;
mod listener;
mod origins;
mod pieces;
mod refusal;
mod upgrade;
mod waiting;

pub use address::Proxies;
pub use claims::remove_claims;
pub use context::{EntryContext, MAX_READS};
pub use listener::{ClientListener, bind, run};
