//! A client's id.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// How many of its lowest bits name the shard that has the client.
const SHARD_BITS: u32 = 8;
/// How many bits above them name the node that has the client. They are 0 while there is one node.
const NODE_BITS: u32 = 16;
const PLACE_BITS: u32 = SHARD_BITS + NODE_BITS;
/// Hexadecimal digits of an id.
const DIGITS: usize = 32;

/// A client's id, for its tenant's code and for the Centrifuge protocol. It is written as 32 hexadecimal digits.
///
/// It names the node and the shard that have the client. The rest is random, so an id does not tell when its client
/// came, nor how many others there are. After four billion clients, the chance that two ids are equal is less than one
/// in 2^40.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u128);

impl ClientId {
    /// A new id, for a client of this shard.
    pub fn new(shard: usize) -> Self {
        Self(rand::random::<u128>() << PLACE_BITS | shard as u128)
    }

    /// The shard that has the client.
    pub fn shard(self) -> usize {
        usize::from(self.0.to_le_bytes()[0])
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

/// A text that is not a client's id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a client's id, which has {DIGITS} hexadecimal digits")]
pub struct ParseClientIdError;

impl FromStr for ClientId {
    type Err = ParseClientIdError;

    fn from_str(text: &str) -> Result<Self, ParseClientIdError> {
        let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(ParseClientIdError)
    }
}

/// Takes the shards in turn. Each tenant has its own turn and begins anywhere, because a client's id tells its shard:
/// with one turn for all, a tenant could count the others' clients.
pub struct ShardTurn(AtomicUsize);

impl Default for ShardTurn {
    fn default() -> Self {
        Self(AtomicUsize::new(rand::random::<u32>() as usize))
    }
}

impl ShardTurn {
    /// The next of `shards`.
    pub fn next(&self, shards: usize) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % shards.clamp(1, 1 << SHARD_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_shard_and_are_read_back() {
        for shard in [0, 1, 255] {
            let id = ClientId::new(shard);
            assert_eq!(id.shard(), shard);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let long = "0".repeat(33);
        for wrong in ["", "1", &long, "+0000000000000000000000000000001", "gggggggggggggggggggggggggggggggg"] {
            assert_eq!(wrong.parse::<ClientId>(), Err(ParseClientIdError), "{wrong}");
        }
    }

    /// One tenant must not see from its clients' ids how many clients the others have.
    #[test]
    fn ids_do_not_count() {
        let numbers: Vec<u128> = (0..64).map(|_| ClientId::new(0).0 >> PLACE_BITS).collect();
        // They are in order by chance once in 64! runs.
        assert!(!numbers.is_sorted());
        let near = numbers.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1 << 64).count();
        assert_eq!(near, 0, "two ids in a row differ in their upper bits");
    }

    #[test]
    fn shards_take_turns_and_another_tenants_clients_do_not_count() {
        let (own, others) = (ShardTurn::default(), ShardTurn::default());
        let first = own.next(7);
        let _ = [others.next(7), others.next(7), others.next(7)];
        let next: Vec<_> = (0..7).map(|_| own.next(7)).collect();
        assert_eq!(next, (1..=7).map(|turn| (first + turn) % 7).collect::<Vec<_>>());
        // Tenants do not begin at the same shard: by chance all of these do once in 10^30 runs.
        let begins: Vec<_> = (0..64).map(|_| ShardTurn::default().next(3)).collect();
        assert!(begins.iter().any(|begin| *begin != begins[0]));
    }
}
