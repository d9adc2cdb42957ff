//! Records, their ids, and the queries for them.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use uuid::{ContextV7, Timestamp, Uuid};

use crate::{store::StoreError, sync::Mutex};

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

/// A UUIDv7 (RFC 9562). Ids made by one host sort in the order they were made, whatever its clock does, also over a
/// restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(u128);

/// The ids of this process, and the first time in milliseconds that they may have: none goes back behind those of
/// before.
static IDS: Mutex<ContextV7> = Mutex::new(ContextV7::new());
static FIRST: AtomicU64 = AtomicU64::new(0);

impl RecordId {
    pub const MAX: Self = Self(u128::MAX);

    /// Makes the next id, and returns the host's time with it if ids are past that.
    fn generate() -> (Self, Option<u64>) {
        // The time is looked at in the order of the ids.
        let ids = IDS.lock();
        let now = now();
        let millis = now.max(FIRST.load(Ordering::Relaxed));
        let nanos = u32::try_from(millis % 1000 * 1_000_000).unwrap_or_default();
        let timestamp = Timestamp::from_unix(&*ids, millis / 1000, nanos);
        let id = Self(Uuid::new_v7(timestamp).as_u128());
        (id, (id.at() != now).then_some(now))
    }

    /// Has all ids from now on be greater than this one.
    pub fn go_on_after(self) {
        FIRST.fetch_max(self.at() + 1, Ordering::Relaxed);
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
    /// When it was appended by its host's clock, if its id says something else.
    pub at: Option<u64>,
    pub data: Vec<u8>,
}

impl Record {
    /// When it was appended, in milliseconds since 1970.
    pub fn time(&self) -> u64 {
        self.at.unwrap_or_else(|| self.id.at())
    }
}

/// A record as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: RecordId,
    /// As a record's.
    pub at: Option<u64>,
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
    let row = |data| {
        let (id, at) = RecordId::generate();
        Row { id, at, collection: collection.clone(), data }
    };
    Ok(data.into_iter().map(row).collect())
}

/// The host's clock, in milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Which rows of a collection are read.
#[derive(Clone, Debug)]
pub enum Query {
    /// This many of the newest records, newest first.
    Latest(usize),
    /// At most `limit` records from the id `from` on that were appended from `since` to before `to`, in milliseconds
    /// since 1970, oldest first.
    Range { from: RecordId, since: u64, to: u64, limit: usize },
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

    /// The ids it covers of records whose time is their id's, from the first to before the second. No id is before its
    /// record's time.
    pub fn bounds(&self) -> (RecordId, RecordId) {
        match self {
            Self::Latest(_) => (RecordId(0), RecordId::MAX),
            Self::Range { from, since, to, .. } => ((*from).max(RecordId::first_of(*since)), RecordId::first_of(*to)),
        }
    }

    /// The times it covers, from the first to before the second, as databases know them. `None`: all.
    pub fn times(&self) -> Option<(u64, u64)> {
        const MOST: u64 = i64::MAX as u64;
        match self {
            Self::Latest(_) => None,
            Self::Range { since, to, .. } => Some(((*since).min(MOST), (*to).min(MOST))),
        }
    }

    pub fn covers(&self, id: RecordId, at: Option<u64>) -> bool {
        match self {
            Self::Latest(_) => true,
            Self::Range { from, since, to, .. } => {
                id >= *from && (*since..*to).contains(&at.unwrap_or_else(|| id.at()))
            }
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

    /// Merges what the sources of an answer have. A row that is in both is there once. The answer ends where the first
    /// of them was cut: what lies behind that in the other may have more before it.
    pub fn merge(&self, one: Part, other: Part) -> Part {
        let is_behind = |id: RecordId, end: RecordId| if self.newest_first() { id < end } else { id > end };
        let mut cut_at = match (one.cut_at, other.cut_at) {
            (Some(one), Some(other)) => Some(if is_behind(one, other) { other } else { one }),
            (one, other) => one.or(other),
        };
        let mut records = one.records;
        records.extend(other.records);
        records.retain(|record| cut_at.is_none_or(|end| !is_behind(record.id, end)));
        records.sort_by_key(|record| record.id);
        if self.newest_first() {
            records.reverse();
        }
        records.dedup_by_key(|record| record.id);
        let count = self.fitting(records.iter().map(|record| record.data.len()));
        if count < records.len() {
            records.truncate(count);
            cut_at = records.last().map(|record| record.id);
        }
        Part { records, cut_at }
    }
}

/// What a source has of an answer, in the query's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub records: Vec<Record>,
    /// The last id that it covers, if there may be more behind it. `None`: these are all.
    pub cut_at: Option<RecordId>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_in_the_order_they_were_made_in_and_know_their_time() {
        let made: Vec<_> = (0..10_000).map(|_| RecordId::generate().0).collect();
        assert!(made.is_sorted_by(|one, other| one < other));
        let id = made[0];
        assert!(RecordId::first_of(id.at()) <= id && id < RecordId::first_of(id.at() + 1));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(RecordId::from(id.bytes()), id);
        assert!(RecordId::first_of(u64::MAX) > id);
        assert!("nonsense".parse::<RecordId>().is_err());
    }

    fn record(id: u128, bytes: usize) -> Record {
        Record { id: RecordId(id), at: None, data: vec![0; bytes] }
    }

    fn ids(records: &[Record]) -> Vec<u128> {
        records.iter().map(|record| record.id.0).collect()
    }

    #[test]
    fn answers_are_merged_within_the_limits() {
        let merge = |query: Query| {
            let one = Part { records: vec![record(5, 1), record(3, 1)], cut_at: None };
            let other = Part { records: vec![record(3, 1), record(1, 1), record(0, 1)], cut_at: None };
            ids(&query.merge(one, other).records)
        };
        assert_eq!(merge(Query::Latest(3)), [5, 3, 1]);
        assert_eq!(merge(range()), [0, 1, 3, 5]);
        assert_eq!(Query::Latest(9).fitting([1, 8 << 20, 1]), 1);
        assert_eq!(Query::Latest(9).fitting([9 << 20, 1]), 1);
        assert_eq!(Query::Latest(9).fitting([]), 0);
        assert_eq!(Query::Latest(5000).fitting(vec![1; 5000]), 1000);
    }

    #[test]
    fn an_answer_ends_where_its_first_source_was_cut() {
        let part = |of: &[u128], cut_at: Option<u128>| Part {
            records: of.iter().map(|id| record(*id, 1)).collect(),
            cut_at: cut_at.map(RecordId),
        };
        let merged = range().merge(part(&[1, 2, 3], Some(3)), part(&[9], None));
        assert_eq!((ids(&merged.records), merged.cut_at), (vec![1, 2, 3], Some(RecordId(3))));
        let merged = range().merge(part(&[1, 4], Some(4)), part(&[2, 6], Some(6)));
        assert_eq!((ids(&merged.records), merged.cut_at), (vec![1, 2, 4], Some(RecordId(4))));
        let merged = Query::Latest(9).merge(part(&[8, 7], Some(7)), part(&[9, 3], None));
        assert_eq!((ids(&merged.records), merged.cut_at), (vec![9, 8, 7], Some(RecordId(7))));
        // What it covered is gone meanwhile.
        let merged = range().merge(part(&[], Some(5)), part(&[9], None));
        assert_eq!(merged, part(&[], Some(5)));
    }

    /// What one of two places has of an answer, made as [`RecordTable`](crate::store::mysql::RecordTable) makes it.
    fn select(rows: &[Record], query: &Query) -> Part {
        let mut found: Vec<_> = rows.iter().filter(|row| query.covers(row.id, row.at)).cloned().collect();
        found.sort_unstable_by_key(|row| row.id);
        if query.newest_first() {
            found.reverse();
        }
        found.truncate(query.limit());
        let count = query.fitting(found.iter().map(|row| row.data.len()));
        let is_cut = count < found.len() || found.len() == query.limit();
        found.truncate(count);
        let cut_at = found.last().map(|row| row.id).filter(|_| is_cut);
        Part { records: found, cut_at }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// However rows are split between the outbox and MySQL, whatever the clock did, and while they drain, a walk
        /// sees each once and in order.
        #[test]
        fn a_walk_sees_every_row_once(
            rows in prop::collection::vec(
                (prop::sample::select(vec![1_usize, 1000, 3 << 20, 5 << 20]), prop::option::of(0_u64..40)),
                1..40,
            ),
            mut drained in 0_usize..40,
            draining in prop::collection::vec(0_usize..4, 40),
            limit in 1_usize..50,
            since in 0_u64..40,
            to in 1_u64..41,
        ) {
            let row = |(nth, (bytes, at)): (usize, &(usize, Option<u64>))| {
                let id = RecordId::first_of(nth as u64);
                // No id is before its record's time.
                Record { id, at: at.filter(|at| *at < nth as u64), data: vec![0; *bytes] }
            };
            let rows: Vec<_> = rows.iter().enumerate().map(row).collect();
            // A walk may have a row that was appended late among those that drained long ago.
            let order: Vec<_> = (0..rows.len()).map(|nth| rows[nth * 7 % rows.len()].clone()).collect();
            let order = if rows.len() % 7 == 0 { rows.clone() } else { order };
            let (mut seen, mut from, mut pages) = (Vec::new(), RecordId(0), draining.iter());
            loop {
                let query = Query::Range { from, since, to, limit };
                let outbox = select(&order[drained.min(rows.len())..], &query);
                // Rows leave the outbox between the two reads.
                drained += pages.next().unwrap_or(&0);
                let mysql = select(&order[..drained.min(rows.len())], &query);
                let page = query.merge(outbox, mysql);
                let Some(last) = page.records.last() else { break };
                from = last.id.next();
                seen.extend(ids(&page.records));
            }
            let expected: Vec<_> = rows.iter().filter(|row| (since..to).contains(&row.time())).cloned().collect();
            prop_assert_eq!(seen, ids(&expected));
            for row in &rows {
                // What databases are asked finds no more and no less.
                let query = Query::Range { from: RecordId(0), since, to, limit };
                let ((first, end), Some((since, before))) = (query.bounds(), query.times()) else { unreachable!() };
                let found = match row.at {
                    None => (first..end).contains(&row.id),
                    Some(at) => row.id >= first && (since..before).contains(&at),
                };
                prop_assert_eq!(found, query.covers(row.id, row.at));
            }
            let query = Query::Latest(limit);
            let split = drained.min(rows.len());
            let newest = query.merge(select(&order[split..], &query), select(&order[..split], &query));
            let all = select(&order, &query);
            prop_assert_eq!(ids(&newest.records), ids(&all.records)[..newest.records.len()].to_vec());
            prop_assert!(!newest.records.is_empty());
        }
    }

    fn range() -> Query {
        Query::Range { from: RecordId(0), since: 0, to: 99, limit: 9 }
    }
}
