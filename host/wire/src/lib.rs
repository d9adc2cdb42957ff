//! The bytes between the relay and its clients and partners, and nothing else: no socket, no runtime, no tenant.
//!
//! - Plain WebSockets: [`frame`] encodes and parses RFC 6455 frames, [`message`] joins frames into messages,
//!   [`deflate`] compresses them (RFC 7692), [`raw`] writes the relay's own replies and errors.
//! - [`sse`]: server-sent events.
//! - [`centrifuge`]: the Centrifuge client protocol in JSON.
//!
//! A [`Position`] in a channel is written the same way in all of them. Every function here takes bytes and returns
//! bytes or plain values, so fuzz targets and benchmarks use the same code as the relay.

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

/// The most channels that one client may follow.
pub const MAX_CHANNELS: usize = 64;
