//! What stands on the wire between the relay and its clients, and nothing else: no socket, no runtime, no tenant.
//!
//! - Plain WebSockets: [`frame`] encodes and parses RFC 6455 frames, [`message`] joins a client's frames to messages,
//!   [`deflate`] compresses them (RFC 7692), [`raw`] has what the relay itself says.
//! - [`sse`]: server-sent events.
//! - [`centrifuge`]: the Centrifuge client protocol in JSON.
//!
//! A [`Position`] in a channel is written the same way in all of them. Every function here takes bytes and gives bytes
//! or plain values, so that fuzz targets and benchmarks use the same code as the relay.

pub mod centrifuge;
mod compression;
pub mod deflate;
pub mod frame;
pub mod header;
pub mod message;
mod payload;
mod position;
pub mod raw;
pub mod sse;

pub use compression::{Compression, SHARED_WINDOW_BITS, encode};
pub use payload::{Entry, Frame, Key, Kind, Page};
pub use position::{Epoch, NotAPosition, Position};
pub use raw::ErrorCode;

/// Most channels that one client may follow.
pub const MAX_CHANNELS: usize = 64;
