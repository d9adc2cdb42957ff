//! The ids by which guests know clients.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// How many bits of an id name the shard.
const SHARD_BITS: u32 = 8;

/// A client's id. Its lowest bits name the shard that has the client. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

impl ClientId {
    pub fn shard(self) -> usize {
        usize::from(self.0.to_le_bytes()[0])
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text does not have the form in which a [`ClientId`] is shown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a client's id: an id has 16 hexadecimal digits")]
pub struct NotAnId;

impl FromStr for ClientId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(NotAnId)
    }
}

/// Makes ids, each once. The first is the number of microseconds since 1970. So a host that is started again does not
/// repeat ids, unless it had let in more than a million clients a second.
pub struct Ids(AtomicU64);

impl Ids {
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(AtomicU64::new(u64::try_from(since.as_micros()).unwrap_or_default()))
    }

    /// A new id, for one of `shards` shards in turn.
    pub fn next(&self, shards: usize) -> ClientId {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        let shards = u64::try_from(shards.clamp(1, 1 << SHARD_BITS)).unwrap_or(1);
        ClientId((number << SHARD_BITS) | (number % shards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_shard_and_are_read_back() {
        let ids = Ids::new();
        let made: Vec<_> = (0..6).map(|_| ids.next(3)).collect();
        for (one, other) in made.iter().zip(made.iter().skip(1)) {
            assert_ne!(one, other);
            assert_eq!((one.shard() + 1) % 3, other.shard());
        }
        for id in made {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for wrong in ["", "1", "00000000000000000", "+000000000000001", "gggggggggggggggg"] {
            assert_eq!(wrong.parse::<ClientId>(), Err(NotAnId), "{wrong}");
        }
    }
}
