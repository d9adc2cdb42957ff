//! A publication, and why it may be refused.

use std::sync::Arc;

use bytes::Bytes;
use wire::{Frame, Key, frame, raw};

use crate::{channel::chunk::LARGE, memory::drop_later};

/// Bytes that are copied at a time: what takes a quarter of a millisecond, with fresh memory.
const PART: usize = 512 << 10;

/// Longest channel name, in bytes.
const MAX_NAME: usize = 255;
/// Longest key, in bytes.
const MAX_KEY: usize = 255;

/// One message for a channel's subscribers.
#[derive(Clone, Debug)]
pub struct Publication {
    pub channel: Arc<str>,
    /// Its key. It replaces earlier publications with the same key.
    pub key: Option<Arc<str>>,
    /// Whether it removes its key.
    pub remove: bool,
    pub data: Frame,
    /// The WebSocket frame of a large one, once it is made.
    pub framed: Option<Box<Bytes>>,
}

impl Publication {
    /// Whether its frame is worth making before it is published.
    pub fn is_large(&self) -> bool {
        self.data.bytes.len() > LARGE
    }

    /// Makes the frame of a large one, a part at a time, with `pass` in between. Others are framed with their burst.
    pub async fn frame<P: Future<Output = ()>>(&mut self, mut pass: impl FnMut() -> P) {
        let payload = &self.data.bytes;
        let mut framed = Vec::with_capacity(frame::header_len(payload.len()) + payload.len());
        frame::encode_head(raw::opcode(self.data.kind), payload.len(), &mut framed);
        let header = framed.len();
        for part in payload.chunks(PART) {
            framed.extend_from_slice(part);
            pass().await;
        }
        let framed = Bytes::from(framed);
        // The copy takes the original's place.
        drop_later(std::mem::replace(&mut self.data.bytes, framed.slice(header..)));
        self.framed = Some(Box::new(framed));
    }

    pub(super) fn key(&self) -> Key {
        Key { name: self.key.clone(), remove: self.remove }
    }
}

/// Why a publication or a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a channel's name has 1 to {MAX_NAME} bytes and no control characters")]
    Name,
    #[error("a key has at most {MAX_KEY} bytes, and a removal needs a key")]
    Key,
    #[error("the channel has as many keys as it may")]
    Keys,
    #[error("a publication has at most {0} bytes")]
    Size(usize),
    #[error("the tenant publishes as often as it may, {0} times a second")]
    Rate(usize),
    #[error("the tenant has as many channels as it may, {0}, and clients may add half of them")]
    Channels(usize),
    #[error("the tenant's logs have reached their limit of bytes")]
    Bytes,
    #[error("the host takes no publication with an id yet")]
    Id,
    #[error("one call makes more publications than the host takes")]
    Count,
    #[error("the time of the call that made it is over")]
    Late,
    #[error("the tenant has no such channel")]
    NotAllowed,
}

impl Refused {
    /// The value of the metric's label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Name => "channel_name",
            Self::Key => "key",
            Self::Keys => "keys",
            Self::Size(_) => "size",
            Self::Rate(_) => "rate",
            Self::Channels(_) => "channels",
            Self::Bytes => "bytes",
            Self::Id => "id",
            Self::Count => "count",
            Self::Late => "late",
            Self::NotAllowed => "not_allowed",
        }
    }

    /// The field that is wrong of what a component made. `None`: a limit was reached.
    pub fn field(self) -> Option<&'static str> {
        match self {
            Self::Name | Self::NotAllowed => Some("channel"),
            Self::Key => Some("key"),
            Self::Size(_) => Some("data"),
            Self::Id => Some("id"),
            Self::Keys | Self::Rate(_) | Self::Channels(_) | Self::Bytes | Self::Count | Self::Late => None,
        }
    }
}

/// Checks a publication's key.
pub(super) fn check(publication: &Publication) -> Result<(), Refused> {
    let Publication { key, remove, .. } = publication;
    if key.as_ref().map_or(*remove, |key| key.len() > MAX_KEY) { Err(Refused::Key) } else { Ok(()) }
}

/// Checks a channel's name.
pub fn check_name(name: &str) -> Result<(), Refused> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refused::Name);
    }
    Ok(())
}
