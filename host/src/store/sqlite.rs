//! The SQLite file: opening, reading, and the writes of its one writer.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags, Row as SqlRow, params};

use crate::store::record::{Collection, Part, Query, Record, RecordId, Row};

/// Most rows and bytes of one read for the drain.
const BATCH_ROWS: usize = 2000;
const BATCH_BYTES: usize = 4 << 20;
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

/// Bytes of each tenant's rows.
pub type Used = HashMap<Arc<str>, u64>;

/// How many records are in the file, and how many bytes each tenant's rows take, dead letters included.
pub fn usage(connection: &Connection) -> rusqlite::Result<(u64, Used)> {
    let mut used = Used::new();
    let rows = add_usage(connection, "records", &mut used)?;
    add_usage(connection, "dead_letters", &mut used)?;
    Ok((rows, used))
}

fn add_usage(connection: &Connection, table: &str, used: &mut Used) -> rusqlite::Result<u64> {
    let sql = format!(
        "SELECT tenant, count(*), sum(length(data)), sum(length(CAST(collection AS BLOB))) FROM {table} GROUP BY tenant"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut found = statement.query([])?;
    let mut rows = 0;
    while let Some(row) = found.next()? {
        let (tenant, count, data, names): (String, u64, u64, u64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        rows += count;
        *used.entry(tenant.as_str().into()).or_default() += data + 2 * names + count * Row::cost_of(0, tenant.len(), 0);
    }
    Ok(rows)
}

pub fn insert(connection: &Connection, rows: &[Row]) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare_cached("INSERT INTO records (id, tenant, collection, data) VALUES (?1, ?2, ?3, ?4)")?;
    for Row { id, collection, data } in rows {
        statement.execute(params![id.bytes(), &*collection.tenant, &*collection.name, data])?;
    }
    Ok(())
}

/// The records that a query finds.
pub fn select(connection: &Connection, collection: &Collection, query: &Query) -> rusqlite::Result<Part> {
    let (from, to) = query.bounds();
    let order = if query.newest_first() { "DESC" } else { "ASC" };
    let sql = format!(
        "SELECT id, data FROM records WHERE tenant = ?1 AND collection = ?2 AND id >= ?3 AND id < ?4 \
         ORDER BY id {order} LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = i64::try_from(query.limit()).unwrap_or(i64::MAX);
    let parameters = params![&*collection.tenant, &*collection.name, from.bytes(), to.bytes(), limit];
    let mut rows = statement.query(parameters)?;
    let (mut records, mut lengths): (Vec<Record>, Vec<usize>) = Default::default();
    let mut is_cut = false;
    while let Some(row) = rows.next()? {
        let record = Record { id: id(row, 0)?, data: row.get(1)? };
        lengths.push(record.data.len());
        is_cut = lengths.len() == query.limit() || query.fitting(lengths.iter().copied()) < lengths.len();
        if query.fitting(lengths.iter().copied()) < lengths.len() {
            break;
        }
        records.push(record);
    }
    let cut_at = records.last().map(|record| record.id).filter(|_| is_cut);
    Ok(Part { records, cut_at })
}

/// The oldest rows, each with its place in the file.
pub fn oldest(connection: &Connection) -> rusqlite::Result<Vec<(i64, Row)>> {
    let mut statement =
        connection.prepare_cached("SELECT seq, id, tenant, collection, data FROM records ORDER BY seq LIMIT ?1")?;
    let mut rows = statement.query([i64::try_from(BATCH_ROWS).unwrap_or(i64::MAX)])?;
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let tenant: String = row.get(2)?;
        let name: String = row.get(3)?;
        let data: Vec<u8> = row.get(4)?;
        bytes += data.len();
        let collection = Collection { tenant: tenant.into(), name: name.into() };
        batch.push((row.get(0)?, Row { id: id(row, 1)?, collection, data }));
        if bytes > BATCH_BYTES {
            break;
        }
    }
    Ok(batch)
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
