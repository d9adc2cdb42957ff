//! Channels: named streams inside a tenant.
//!
//! In come publications, through [`Channels::publish`] whoever produced them; they are encoded once into a [`Chunk`],
//! kept in the channel's [`Log`], and every shard that has subscribers is told. Nothing here waits for a client: shards
//! take references to the chunks when they come to it, and what bounds memory is the log's size.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use crate::{config::ChannelRule, metrics::TenantMetrics};

mod chunk;
mod log;

pub use chunk::Chunk;
pub use log::Log;

/// Longest channel name, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 255;
/// Largest payload of a publication, in bytes: that of an upstream message, so that `pass` refuses none.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Most channels of a tenant that exist at once, published to or subscribed to.
const MAX_CHANNELS: usize = 10_000;
/// Burst bytes after which a new chunk begins: a chunk leaves the log whole, so it stays small beside it.
const CHUNK_BYTES: usize = 256 << 10;

/// A WebSocket message: its type and its bytes (for text, UTF-8: whoever makes one has checked).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
}

/// One message for a channel's subscribers.
#[derive(Clone, Debug)]
pub struct Publication {
    pub channel: Arc<str>,
    pub data: Frame,
}

/// Why a publication or a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a channel's name has 1 to {MAX_NAME} bytes and no control characters")]
    Name,
    #[error("a key has at most {MAX_KEY} bytes")]
    Key,
    #[error("a publication has at most {MAX_PAYLOAD} bytes")]
    Size,
    #[error("the tenant has {MAX_CHANNELS} channels already")]
    Channels,
}

impl Refused {
    /// The value of the metric's label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Name => "channel_name",
            Self::Key => "key",
            Self::Size => "size",
            Self::Channels => "channels",
        }
    }
}

/// Checks a channel's name.
pub fn check_name(name: &str) -> Result<(), Refused> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refused::Name);
    }
    Ok(())
}

/// Whom a channel tells of new chunks: a shard's queue. Called with the channel locked: it must not wait.
pub trait Reader: Send + Sync {
    /// `token` is what the reader gave to [`Channel::attach`].
    fn fresh(&self, token: usize);
}

/// The channels of one tenant.
pub struct Channels {
    rules: Vec<ChannelRule>,
    metrics: Arc<TenantMetrics>,
    open: Mutex<HashMap<Arc<str>, Arc<Channel>>>,
}

impl Channels {
    pub fn new(rules: Vec<ChannelRule>, metrics: Arc<TenantMetrics>) -> Self {
        Self { rules, metrics, open: Mutex::default() }
    }

    /// The one way into a log: appends the publications in their order, each channel's as one burst.
    ///
    /// Returns how many went in and, for the rest, why not (counted already). Async for the day when the log lives on
    /// another node; here it never waits.
    #[allow(clippy::unused_async)]
    pub async fn publish(&self, publications: Vec<Publication>) -> (usize, Vec<Refused>) {
        let mut bursts: Vec<(Arc<Channel>, Vec<Frame>)> = Vec::new();
        let mut refused = Vec::new();
        for Publication { channel, data } in publications {
            if data.bytes.len() > MAX_PAYLOAD {
                refused.push(Refused::Size);
                continue;
            }
            match bursts.iter_mut().find(|(open, _)| open.name == channel) {
                Some((_, burst)) => burst.push(data),
                None => match self.open(&channel) {
                    Ok(open) => bursts.push((open, vec![data])),
                    Err(why) => refused.push(why),
                },
            }
        }
        let mut taken = 0;
        for (channel, burst) in bursts {
            taken += burst.len();
            channel.append(&burst);
        }
        self.metrics.publications.inc_by(taken as u64);
        for why in &refused {
            self.metrics.refused(why.reason());
        }
        (taken, refused)
    }

    /// The channel of that name, made if it is not there yet.
    pub fn open(&self, name: &str) -> Result<Arc<Channel>, Refused> {
        check_name(name)?;
        let mut open = lock(&self.open);
        if let Some(channel) = open.get(name) {
            return Ok(Arc::clone(channel));
        }
        if open.len() >= MAX_CHANNELS {
            // Those that nobody reads and nobody ever published to were only asked for.
            open.retain(|_, channel| Arc::strong_count(channel) > 1 || !channel.is_unused());
        }
        if open.len() >= MAX_CHANNELS {
            return Err(Refused::Channels);
        }
        let name: Arc<str> = name.into();
        let channel = Arc::new(Channel {
            name: Arc::clone(&name),
            metrics: Arc::clone(&self.metrics),
            subscribers: AtomicUsize::new(0),
            state: Mutex::new(State { log: Log::new(self.log_bytes(&name)), next_offset: 1, readers: Vec::new() }),
        });
        open.insert(name, Arc::clone(&channel));
        Ok(channel)
    }

    /// A channel that is there already.
    pub fn get(&self, name: &str) -> Option<Arc<Channel>> {
        lock(&self.open).get(name).cloned()
    }

    /// The rule with the longest pattern that fits decides.
    fn log_bytes(&self, name: &str) -> usize {
        let fitting = self.rules.iter().filter(|rule| match rule.pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == rule.pattern,
        });
        fitting.max_by_key(|rule| rule.pattern.len()).map_or(ChannelRule::LOG_BYTES, |rule| rule.log_bytes)
    }
}

/// One channel: its log and the shards that read it.
pub struct Channel {
    pub name: Arc<str>,
    pub metrics: Arc<TenantMetrics>,
    /// Clients that follow it now, in all shards.
    subscribers: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    log: Log,
    next_offset: u64,
    readers: Vec<Attached>,
}

struct Attached {
    reader: Arc<dyn Reader>,
    token: usize,
    /// Told of new chunks and not yet come for them.
    told: bool,
}

impl Channel {
    /// Appends a burst whole, then tells the readers.
    fn append(&self, burst: &[Frame]) {
        let mut state = lock(&self.state);
        let mut rest = burst;
        while !rest.is_empty() {
            let (chunk, encoded) = Chunk::encode(state.log.next_seq(), state.next_offset, rest, CHUNK_BYTES);
            rest = rest.get(encoded..).unwrap_or_default();
            state.next_offset += encoded as u64;
            state.log.push(Arc::new(chunk), drop);
        }
        for attached in state.readers.iter_mut().filter(|attached| !attached.told) {
            attached.told = true;
            attached.reader.fresh(attached.token);
        }
    }

    /// Adds a reader, which is told of every chunk after those in the log returned.
    pub fn attach(&self, reader: Arc<dyn Reader>, token: usize) -> Log {
        let mut state = lock(&self.state);
        state.readers.push(Attached { reader, token, told: false });
        state.log.clone()
    }

    /// Hands over the chunks from position `seq` on that the log still has.
    pub fn read(&self, reader: &Arc<dyn Reader>, seq: u64, mut take: impl FnMut(&Arc<Chunk>)) {
        let mut state = lock(&self.state);
        if let Some(attached) = state.readers.iter_mut().find(|attached| Arc::ptr_eq(&attached.reader, reader)) {
            attached.told = false;
        }
        state.log.from(seq).for_each(&mut take);
    }

    pub fn detach(&self, reader: &Arc<dyn Reader>) {
        lock(&self.state).readers.retain(|attached| !Arc::ptr_eq(&attached.reader, reader));
    }

    /// The newest publication, if the log has one.
    pub fn latest(&self) -> Option<Frame> {
        lock(&self.state).log.newest()?.last()
    }

    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// A shard has one subscriber more.
    pub fn joined(&self) {
        self.subscribers.fetch_add(1, Ordering::Relaxed);
    }

    /// A shard has one subscriber less.
    pub fn left(&self) {
        self.subscribers.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_unused(&self) -> bool {
        lock(&self.state).next_offset == 1
    }
}

/// A lock is poisoned only by a panic, and every state here is whole between two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
