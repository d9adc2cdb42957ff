//! Records, their ids, and the queries for them.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use crate::store::StoreError;

/// Longest name of a collection, in bytes.
const MAX_COLLECTION: usize = 128;
/// Largest row, in bytes.
const MAX_ROW: usize = 1 << 20;
/// Most rows and bytes of one append.
const MAX_ROWS: usize = 10_000;
const MAX_APPEND: usize = 16 << 20;
/// Bytes that a row takes besides its data and its names.
const ROW_OVERHEAD: usize = 100;
/// Bits of an id below its milliseconds.
const BELOW_TIME: u32 = 80;

/// A UUIDv7 (RFC 9562). Ids made by one host sort in the order they were made, whatever its clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(u128);

impl RecordId {
    /// Makes the next id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().as_u128())
    }

    /// The smallest id of a time in milliseconds since 1970.
    pub fn first_of(millis: u64) -> Self {
        Self(u128::from(millis).min((1 << 48) - 1) << BELOW_TIME)
    }

    /// The smallest id after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The id's time in milliseconds since 1970.
    pub fn at(self) -> u64 {
        u64::try_from(self.0 >> BELOW_TIME).unwrap_or(u64::MAX)
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl From<[u8; 16]> for RecordId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl FromStr for RecordId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let id = Uuid::try_parse(text).map_err(|_| StoreError::Invalid("not a record's id: ids are UUIDs"))?;
        Ok(Self(id.as_u128()))
    }
}

/// A tenant's collection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collection {
    pub tenant: Arc<str>,
    pub name: Arc<str>,
}

impl Collection {
    pub fn new(tenant: &Arc<str>, name: &str) -> Result<Self, StoreError> {
        if name.is_empty() || name.len() > MAX_COLLECTION || name.chars().any(char::is_control) {
            return Err(StoreError::Invalid("a collection's name has 1 to 128 bytes and no control characters"));
        }
        Ok(Self { tenant: Arc::clone(tenant), name: name.into() })
    }
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: RecordId,
    pub data: Vec<u8>,
}

/// A record as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: RecordId,
    pub collection: Collection,
    pub data: Vec<u8>,
}

impl Row {
    /// Roughly the bytes that the row takes in the file. Its names count twice, since the index has them too.
    pub fn cost(&self) -> u64 {
        Self::cost_of(self.data.len(), self.collection.tenant.len(), self.collection.name.len())
    }

    pub fn cost_of(data: usize, tenant: usize, name: usize) -> u64 {
        (data + 2 * (tenant + name) + ROW_OVERHEAD) as u64
    }
}

/// Gives rows their ids, in their order.
pub fn rows(collection: &Collection, data: Vec<Vec<u8>>) -> Result<Vec<Row>, StoreError> {
    if data.len() > MAX_ROWS || data.iter().map(Vec::len).sum::<usize>() > MAX_APPEND {
        return Err(StoreError::Invalid("one call appends at most 10,000 rows and 16 MiB"));
    }
    if data.iter().any(|row| row.len() > MAX_ROW) {
        return Err(StoreError::Invalid("a row has at most 1 MiB"));
    }
    let row = |data| Row { id: RecordId::generate(), collection: collection.clone(), data };
    Ok(data.into_iter().map(row).collect())
}

/// Which rows of a collection are read.
#[derive(Clone, Debug)]
pub enum Query {
    /// This many of the newest records, newest first.
    Latest(usize),
    /// At most `limit` records from the id `from` to before `to`, oldest first.
    Range { from: RecordId, to: RecordId, limit: usize },
}

impl Query {
    /// Most rows of one read.
    const MAX_ROWS: usize = 1000;
    /// Most bytes of one read. The first row may have more.
    const MAX_BYTES: usize = 8 << 20;

    pub fn limit(&self) -> usize {
        let (Self::Latest(limit) | Self::Range { limit, .. }) = self;
        (*limit).min(Self::MAX_ROWS)
    }

    /// The ids it covers, from the first to before the second.
    pub fn bounds(&self) -> (RecordId, RecordId) {
        match self {
            Self::Latest(_) => (RecordId(0), RecordId(u128::MAX)),
            Self::Range { from, to, .. } => (*from, *to),
        }
    }

    pub fn newest_first(&self) -> bool {
        matches!(self, Self::Latest(_))
    }

    /// How many of the rows with these lengths one read returns.
    pub fn fitting(&self, lengths: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0_usize;
        let fits = |length: &usize| {
            bytes = bytes.saturating_add(*length);
            bytes <= Self::MAX_BYTES
        };
        let mut lengths = lengths.into_iter().take(self.limit()).peekable();
        let any = usize::from(lengths.peek().is_some());
        lengths.take_while(fits).count().max(any)
    }

    /// Merges two answers to this query. A row that is in both is there once.
    pub fn merge(&self, one: Vec<Record>, other: Vec<Record>) -> Vec<Record> {
        let mut all = one;
        all.extend(other);
        all.sort_by_key(|record| record.id);
        if self.newest_first() {
            all.reverse();
        }
        all.dedup_by_key(|record| record.id);
        all.truncate(self.fitting(all.iter().map(|record| record.data.len())));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_they_were_made_in_and_know_their_time() {
        let made: Vec<_> = (0..10_000).map(|_| RecordId::generate()).collect();
        assert!(made.is_sorted_by(|one, other| one < other));
        let id = made[0];
        assert!(RecordId::first_of(id.at()) <= id && id < RecordId::first_of(id.at() + 1));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(RecordId::from(id.bytes()), id);
        assert!(RecordId::first_of(u64::MAX) > id);
        assert!("nonsense".parse::<RecordId>().is_err());
    }

    #[test]
    fn answers_are_merged_within_the_limits() {
        let record = |id: u128, bytes: usize| Record { id: RecordId(id), data: vec![0; bytes] };
        let ids = |records: Vec<Record>| records.iter().map(|record| record.id.0).collect::<Vec<_>>();
        let merge = |query: Query| {
            ids(query.merge(vec![record(5, 1), record(3, 1)], vec![record(3, 1), record(1, 1), record(0, 1)]))
        };
        assert_eq!(merge(Query::Latest(3)), [5, 3, 1]);
        let all = (RecordId(0), RecordId(9));
        assert_eq!(merge(Query::Range { from: all.0, to: all.1, limit: 9 }), [0, 1, 3, 5]);
        assert_eq!(Query::Latest(9).fitting([1, 8 << 20, 1]), 1);
        assert_eq!(Query::Latest(9).fitting([9 << 20, 1]), 1);
        assert_eq!(Query::Latest(9).fitting([]), 0);
        assert_eq!(Query::Latest(5000).fitting(vec![1; 5000]), 1000);
    }
}
