//! The SQLite file: opening, reading, and the writes of its one writer.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row as SqlRow, ToSql, params};

use crate::store::record::{Collection, Part, Query, Record, RecordId, Row};

/// Most rows and bytes of one read for the drain, unless a row has more.
const BATCH_ROWS: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;
/// How many rows one statement inserts, if there are as many.
const ROWS_AT_ONCE: usize = 16;
/// The write-ahead log is cut back to this many bytes when it has been larger.
const WAL_BYTES: u64 = 64 << 20;
/// How long a statement waits for another connection's lock.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// The right to use a store's file, for this process alone.
pub struct FileLock(#[allow(dead_code)] File);

impl FileLock {
    /// `None`: another process has it. The lock is a file beside the store's, since SQLite has its own locks on that.
    pub fn take(file: &Path) -> io::Result<Option<Self>> {
        let lock = File::options().create(true).append(true).open(file.with_added_extension("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Opens the writer's connection. The file may grow to `size` bytes.
pub fn open(file: &Path, size: u64) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit is on disk when it returns.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    connection.pragma_update(None, "max_page_count", size / page.max(1))?;
    Ok(connection)
}

/// Opens a reader's connection.
pub fn open_for_reading(file: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// What a tenant has in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Rows that are no dead letters.
    pub rows: u64,
    /// Bytes, those of dead letters included.
    pub bytes: u64,
}

pub type Used = HashMap<Arc<str>, Use>;

/// What each tenant has in the file.
pub fn usage(connection: &Connection) -> rusqlite::Result<Used> {
    let mut used = Used::new();
    add_usage(connection, "records", &mut used, true)?;
    add_usage(connection, "dead_letters", &mut used, false)?;
    Ok(used)
}

fn add_usage(connection: &Connection, table: &str, used: &mut Used, counts: bool) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT tenant, count(*), sum(length(data)), sum(length(CAST(collection AS BLOB))) FROM {table} GROUP BY tenant"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (tenant, count, data, names): (String, u64, u64, u64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let used = used.entry(tenant.as_str().into()).or_default();
        used.rows += if counts { count } else { 0 };
        used.bytes += data + 2 * names + count * Row::cost_of(0, tenant.len(), 0);
    }
    Ok(())
}

pub fn insert<'r>(connection: &Connection, rows: impl IntoIterator<Item = &'r Row>) -> rusqlite::Result<()> {
    let rows: Vec<_> = rows.into_iter().collect();
    let (many, few) = rows.as_chunks::<ROWS_AT_ONCE>();
    many.iter().try_for_each(|rows| insert_at_once(connection, rows))?;
    few.iter().try_for_each(|row| insert_at_once(connection, &[row]))
}

/// Inserts this many rows with one statement.
fn insert_at_once<const N: usize>(connection: &Connection, rows: &[&Row; N]) -> rusqlite::Result<()> {
    let values = ["(?, ?, ?, ?, ?)"; N].join(", ");
    let sql = format!("INSERT INTO records (id, tenant, collection, data, at) VALUES {values}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut next = 1..;
    for Row { id, at, collection, data } in rows {
        let values = params![id.bytes(), &*collection.tenant, &*collection.name, data, at];
        for (value, place) in values.iter().zip(&mut next) {
            statement.raw_bind_parameter(place, value)?;
        }
    }
    statement.raw_execute()?;
    Ok(())
}

/// The records that a query finds.
pub fn select(connection: &Connection, collection: &Collection, query: &Query) -> rusqlite::Result<Part> {
    let (from, to) = query.bounds();
    let by_id = |more: &str| {
        let condition = format!("id >= ?3 AND id < ?4{more}");
        let parameters = params![from.bytes(), to.bytes()];
        select_where(connection, collection, query, ("records_by_collection", &condition), parameters)
    };
    let Some((since, before)) = query.times() else { return by_id("") };
    let in_time = by_id(" AND at IS NULL")?;
    let moved = ("records_by_time", "id >= ?3 AND at >= ?4 AND at < ?5");
    let moved = select_where(connection, collection, query, moved, params![from.bytes(), since, before])?;
    Ok(query.merge(in_time, moved))
}

/// The records for which a condition holds, as many as a query wants.
fn select_where(
    connection: &Connection,
    collection: &Collection,
    query: &Query,
    (index, condition): (&str, &str),
    parameters: &[&dyn ToSql],
) -> rusqlite::Result<Part> {
    let order = if query.newest_first() { "DESC" } else { "ASC" };
    let limit = query.limit();
    let sql = format!(
        "SELECT id, at, data FROM records INDEXED BY {index} WHERE tenant = ?1 AND collection = ?2 AND {condition} \
         ORDER BY id {order} LIMIT {limit}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let of = params![&*collection.tenant, &*collection.name];
    let mut rows = statement.query(&[of, parameters].concat()[..])?;
    let (mut records, mut lengths): (Vec<Record>, Vec<usize>) = Default::default();
    let mut is_cut = false;
    while let Some(row) = rows.next()? {
        let record = Record { id: id(row, 0)?, at: row.get(1)?, data: row.get(2)? };
        lengths.push(record.data.len());
        is_cut = lengths.len() == limit || query.fitting(lengths.iter().copied()) < lengths.len();
        if query.fitting(lengths.iter().copied()) < lengths.len() {
            break;
        }
        records.push(record);
    }
    let cut_at = records.last().map(|record| record.id).filter(|_| is_cut);
    Ok(Part { records, cut_at })
}

/// A row and its place in the file.
pub type Placed = (i64, Row);
/// How far the drain has passed rows that go apart: the place and id of the last of them.
pub type Passed = Option<(i64, RecordId)>;

/// Rows for the drain, and how far it has passed those of other tenants.
pub struct Oldest {
    /// When the oldest row of any tenant was appended, in milliseconds since 1970. `None`: there are none.
    pub since: Option<u64>,
    pub rows: Vec<Placed>,
    pub passed: Passed,
}

/// The oldest rows but for those of the tenants in `without`, of which all up to `passed` are.
pub fn oldest(connection: &Connection, without: &BTreeSet<Arc<str>>, passed: Passed) -> rusqlite::Result<Oldest> {
    // All of it sees the file at the same time.
    let connection = connection.unchecked_transaction()?;
    let mut at = connection.prepare_cached("SELECT id FROM records WHERE seq = ?1")?;
    // Places are used again.
    let mut stands = |(place, last): &(i64, RecordId)| {
        let found = at.query_row([place], |row| id(row, 0)).optional();
        found.is_ok_and(|found| found == Some(*last))
    };
    let passed = passed.filter(|passed| !without.is_empty() && stands(passed));
    let marks = vec!["?"; without.len()].join(",");
    let condition = format!("seq > ? AND tenant NOT IN ({marks}) ORDER BY seq LIMIT {BATCH_ROWS}");
    let from = passed.map_or(i64::MIN, |(place, _)| place);
    let tenants = without.iter().map(|tenant| tenant as &dyn ToSql);
    let parameters: Vec<_> = std::iter::once(&from as &dyn ToSql).chain(tenants).collect();
    let rows = rows_where(&connection, &condition, &parameters)?;
    let passed = match without.is_empty() {
        true => None,
        false => {
            let end = rows.first().map_or(i64::MAX, |(place, _)| *place);
            let mut last =
                connection.prepare_cached("SELECT seq, id FROM records WHERE seq < ?1 ORDER BY seq DESC LIMIT 1")?;
            last.query_row([end], |row| Ok((row.get(0)?, id(row, 1)?))).optional()?
        }
    };
    let since = match rows.first() {
        Some((_, row)) if without.is_empty() => Some(row.at.unwrap_or(row.id.at())),
        _ => oldest_time(&connection)?,
    };
    Ok(Oldest { since, rows, passed })
}

/// Some rows of one tenant, for the drain.
pub fn some_of(connection: &Connection, tenant: &Arc<str>, most: usize) -> rusqlite::Result<Vec<Placed>> {
    let condition = format!("tenant = ? ORDER BY collection, id LIMIT {most}");
    rows_where(connection, &condition, &[tenant as &dyn ToSql])
}

fn rows_where(connection: &Connection, condition: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<Vec<Placed>> {
    let sql = format!("SELECT seq, id, tenant, collection, data, at FROM records WHERE {condition}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(parameters)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let tenant: String = row.get(2)?;
        let name: String = row.get(3)?;
        let data: Vec<u8> = row.get(4)?;
        bytes += data.len();
        let collection = Collection { tenant: tenant.into(), name: name.into() };
        found.push((row.get(0)?, Row { id: id(row, 1)?, at: row.get(5)?, collection, data }));
        if bytes > BATCH_BYTES {
            break;
        }
    }
    Ok(found)
}

/// When the oldest row was appended, in milliseconds since 1970.
pub fn oldest_time(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let mut statement = connection.prepare_cached("SELECT id, at FROM records ORDER BY seq LIMIT 1")?;
    let oldest = statement.query_row([], |row| Ok(row.get::<_, Option<u64>>(1)?.unwrap_or(id(row, 0)?.at())));
    oldest.optional()
}

fn id(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<RecordId> {
    row.get::<_, [u8; 16]>(column).map(RecordId::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_on_disk_when_it_returns() {
        let file = std::env::temp_dir().join(format!("edge-relay-sqlite-{}", std::process::id()));
        let connection = open(&file, 1 << 20).unwrap();
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        // 2 is FULL.
        assert_eq!(pragma("synchronous").unwrap(), 2.into());
        drop(connection);
        std::fs::remove_file(file).unwrap();
    }
}
