//! MySQL: the database that an outbox's rows go to and are read from.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use config::{StoreConfig, grants::Secret};
use mysql_async::{Conn, Error, Params, ServerError, Value, prelude::Queryable};
use tokio::time::sleep;

use crate::{
    store::{
        StoreError,
        record::{Collection, Part, Query, Record, RecordId},
    },
    sync::Mutex,
};

mod connections;
mod errors;
mod insert;
mod url;

pub use crate::store::mysql::{
    connections::{Connections, Lent, is_late, leaves_it_usable},
    errors::{explain, is_refused_login},
    insert::{InsertError, Inserter, STATEMENT_ROWS, statement_rows, together},
    url::{BadUrl, parse_url},
};

/// Most connections that read at once.
const MAX_READERS: usize = 7;
/// Deadlines for a connection and for a statement.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_DEADLINE: Duration = Duration::from_secs(30);
/// MySQL's errors ER_NO_SUCH_TABLE and ER_BAD_FIELD_ERROR.
const NO_SUCH_TABLE: u16 = 1146;
const NO_SUCH_COLUMN: u16 = 1054;
/// How long reads fail at once after the server has refused a login.
const LOGIN_AGAIN: Duration = Duration::from_secs(1);
/// How often a read is tried again while the tables are brought up to date, and after what pause.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// The table of records.
pub struct RecordTable {
    connections: Connections,
    url: Mutex<Secret>,
    /// The file that the URL was read from.
    file: Option<PathBuf>,
    /// When the last login was refused, and what was said.
    refused: Mutex<Option<(Instant, String)>>,
}

impl RecordTable {
    /// The table that a configuration names, if it names MySQL. It connects when it is first used.
    pub fn of(config: &StoreConfig) -> Result<Option<Self>, BadUrl> {
        let Some(url) = &config.mysql else { return Ok(None) };
        let connections = Connections::new(url::opts(url.reveal())?, MAX_READERS);
        Ok(Some(Self {
            connections,
            url: Mutex::new(url.clone()),
            file: config.mysql_file.clone(),
            refused: Mutex::default(),
        }))
    }

    /// Reads the URL again, if it is in a file. What begins from then on connects with a new one.
    pub fn read_url_again(&self) {
        let Some(file) = &self.file else { return };
        let read = std::fs::read_to_string(file).map_err(|error| error.to_string());
        let opts = read.and_then(|text| {
            let found = Secret::from(text.trim());
            let is_new = self.url.lock().reveal() != found.reveal();
            let opts = url::opts(found.reveal()).map_err(|error| error.to_string())?;
            *self.url.lock() = found;
            Ok(is_new.then_some(opts))
        });
        let file = file.display();
        match opts {
            Ok(None) => {}
            Ok(Some(opts)) => {
                self.connections.change(opts);
                *self.refused.lock() = None;
                tracing::info!(%file, "the URL of MySQL was read again");
            }
            Err(error) => tracing::error!(%file, %error, "the URL of MySQL cannot be read again; the last one is used"),
        }
    }

    /// Prepares for another try after this error: what was refused may be due to the address, or to the password.
    pub fn look_again(&self, error: &Error) {
        self.connections.forget();
        if is_refused_login(error) {
            self.read_url_again();
        }
    }

    /// How old a connection may become.
    pub fn greatest_age(&self) -> Duration {
        self.connections.greatest_age()
    }

    /// Has reads connect anew.
    pub fn forget(&self) {
        self.connections.forget();
    }

    /// A connection for the one task that writes.
    pub async fn connect(&self) -> Result<Lent<'_>, Error> {
        self.connections.take_extra(Instant::now() + CONNECT_DEADLINE).await
    }

    /// Does something with one of the connections that are for readers.
    async fn run<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        if let Some((at, said)) = &*self.refused.lock()
            && at.elapsed() < LOGIN_AGAIN
        {
            return Err(StoreError::Unavailable(said.clone()));
        }
        let done = async { self.connections.take(deadline).await?.run(deadline, work).await };
        done.await.map_err(|error| {
            let said = explain(&error);
            if is_refused_login(&error) {
                *self.refused.lock() = Some((Instant::now(), said.clone()));
                self.read_url_again();
            }
            StoreError::Unavailable(said)
        })
    }

    /// The records that a query finds.
    pub async fn select(&self, collection: &Collection, query: &Query, deadline: Instant) -> Result<Part, StoreError> {
        let mut tries = 0;
        let selected = async |connection: &mut Conn| loop {
            match select(connection, collection, query).await {
                // The table of before has no times: the drain brings it up to date.
                Err(Error::Server(server)) if lacks_times(&server) && tries < TRIES => {
                    tries += 1;
                    sleep(TRY_AGAIN).await;
                }
                // There are no rows before there is a table.
                Err(Error::Server(server)) if server.code == NO_SUCH_TABLE && !lacks_times(&server) => {
                    return Ok(Part::default());
                }
                selected => return selected,
            }
        };
        self.run(deadline, selected).await
    }

    /// The first collection of a tenant whose name is at least `from` and below `to`.
    pub async fn collection(&self, tenant: &Arc<str>, from: &str, to: &str) -> Result<Option<Collection>, StoreError> {
        let sql = "SELECT collection FROM records WHERE tenant = ? AND collection >= ? AND collection < ? \
            ORDER BY collection LIMIT 1";
        let parameters = (tenant.as_bytes(), from.as_bytes(), to.as_bytes());
        let found = async |connection: &mut Conn| connection.exec_first::<Vec<u8>, _, _>(sql, parameters).await;
        let name = self.run(Instant::now() + QUERY_DEADLINE, found).await?;
        let name = name.map(|name| String::from_utf8_lossy(&name).into());
        Ok(name.map(|name| Collection { tenant: Arc::clone(tenant), name }))
    }

    /// Deletes at most `most` rows that were appended before a time in milliseconds. Returns how many.
    pub async fn delete_before(&self, collection: &Collection, before: u64, most: usize) -> Result<u64, StoreError> {
        let (tenant, name) = (collection.tenant.as_bytes(), collection.name.as_bytes());
        let deleted = async |connection: &mut Conn| {
            let sql = "DELETE FROM records WHERE tenant = ? AND collection = ? AND id < ? AND at IS NULL LIMIT ?";
            let first = RecordId::first_of(before).bytes().to_vec();
            connection.exec_drop(sql, (tenant, name, first, most)).await?;
            let deleted = connection.affected_rows();
            let left = (most as u64).saturating_sub(deleted);
            let sql = "SELECT id FROM record_times WHERE tenant = ? AND collection = ? AND at < ? ORDER BY at LIMIT ?";
            let moved: Vec<Vec<u8>> = connection.exec(sql, (tenant, name, before, left)).await?;
            if moved.is_empty() {
                return Ok(deleted);
            }
            let count = moved.len() as u64;
            let ids = vec!["?"; moved.len()].join(",");
            let names = [tenant, name].map(|name| Value::Bytes(name.to_vec()));
            let of: Vec<_> = names.into_iter().chain(moved.into_iter().map(Value::Bytes)).collect();
            let delete = |table| {
                let sql = format!("DELETE FROM {table} WHERE tenant = ? AND collection = ? AND id IN ({ids})");
                (sql, Params::Positional(of.clone()))
            };
            together(connection, ["records", "record_times"].map(delete).into()).await?;
            Ok(deleted + count)
        };
        self.run(Instant::now() + QUERY_DEADLINE, deleted).await
    }

    /// The server's time, in milliseconds since 1970.
    pub async fn now(&self) -> Result<u64, StoreError> {
        let sql = "SELECT UNIX_TIMESTAMP()";
        let now = async |connection: &mut Conn| connection.query_first::<u64, _>(sql).await;
        let seconds = self.run(Instant::now() + QUERY_DEADLINE, now).await?;
        Ok(seconds.unwrap_or_default().saturating_mul(1000))
    }
}

async fn select(connection: &mut Conn, collection: &Collection, query: &Query) -> Result<Part, Error> {
    let (from, to) = query.bounds();
    let moved = Some(RecordId::MAX);
    // The lengths come first, so that large rows are not fetched only to be dropped.
    let select = Select { content: "LENGTH(data)", collection, query, from, to, moved, limit: query.limit() };
    let (sql, parameters) = select.statement();
    let lengths: Vec<(Vec<u8>, Option<u64>, usize)> = connection.exec(sql, parameters).await?;
    let count = query.fitting(lengths.iter().map(|(_, _, length)| *length));
    let Some((last, ..)) = count.checked_sub(1).and_then(|nth| lengths.get(nth)) else { return Ok(Part::default()) };
    let (last, is_cut) = (record_id(last)?, count < lengths.len() || lengths.len() == query.limit());
    // Rows may come and go in between, so the second statement has bounds of its own.
    let (from, end) = if query.newest_first() { (last, to) } else { (from, last.next()) };
    let moved = lengths.iter().any(|(_, at, _)| at.is_some()).then_some(end);
    let to = end.min(to);
    let (sql, parameters) = Select { content: "data", from, to, moved, limit: count, ..select }.statement();
    let rows: Vec<(Vec<u8>, Option<u64>, Vec<u8>)> = connection.exec(sql, parameters).await?;
    let records: Vec<_> = rows
        .into_iter()
        .map(|(id, at, data)| Ok(Record { id: record_id(&id)?, at, data }))
        .collect::<Result<_, Error>>()?;
    let cut_at = match records.last() {
        // Some have come, so that not all were fetched.
        Some(end) if records.len() == count && end.id != last => Some(end.id),
        _ => is_cut.then_some(last),
    };
    Ok(Part { records, cut_at })
}

/// Whether it is the column or the table of times that is not there.
fn lacks_times(error: &ServerError) -> bool {
    error.code == NO_SUCH_COLUMN || error.code == NO_SUCH_TABLE && error.message.contains("record_times")
}

/// A statement that reads rows of a collection, in a query's order.
#[derive(Clone, Copy)]
struct Select<'s> {
    content: &'static str,
    collection: &'s Collection,
    query: &'s Query,
    from: RecordId,
    to: RecordId,
    /// To before which id there may be rows whose time is not their id's. `None`: there are none.
    moved: Option<RecordId>,
    limit: usize,
}

impl Select<'_> {
    fn statement(self) -> (String, Params) {
        let Self { content, collection, query, from, to, moved, limit } = self;
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let place = |to: RecordId| {
            let names = [&collection.tenant, &collection.name].map(|name| bytes(name.as_bytes()));
            names.into_iter().chain([from, to].map(|id| bytes(&id.bytes()))).collect::<Vec<_>>()
        };
        let order = if query.newest_first() { "DESC" } else { "ASC" };
        let end = format!("ORDER BY id {order} LIMIT {limit}");
        let within = "WHERE tenant = ? AND collection = ? AND id >= ? AND id < ?";
        let select = format!("SELECT id, at, {content} FROM records {within}");
        let mut parameters = place(to);
        let sql = match (query.times(), moved) {
            (None, _) => format!("{select} {end}"),
            (Some(_), None) => format!("{select} AND at IS NULL {end}"),
            (Some((since, before)), Some(to)) => {
                parameters.extend(place(to));
                parameters.extend([since, before].map(Value::UInt));
                // Times without a row are passed over: the row is among the dead letters.
                let moved = format!(
                    "SELECT STRAIGHT_JOIN times.id, records.at, {content} FROM record_times AS times JOIN records \
                     USING (tenant, collection, id) WHERE times.tenant = ? AND times.collection = ? AND times.id >= ? \
                     AND times.id < ? AND times.at >= ? AND times.at < ? ORDER BY times.id {order} LIMIT {limit}"
                );
                format!("({select} AND at IS NULL {end}) UNION ALL ({moved}) {end}")
            }
        };
        (sql, Params::Positional(parameters))
    }
}

/// An id that has not its 16 bytes was written by somebody else, into a table that somebody else has changed.
fn record_id(id: &[u8]) -> Result<RecordId, Error> {
    let foreign = || format!("the id of a record is not a UUID of 16 bytes: {}", id.escape_ascii());
    let id = <[u8; 16]>::try_from(id).map_err(|_| Error::Other(foreign().into()))?;
    Ok(RecordId::from(id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_none_is_named() {
        assert_eq!(record_id(&[7; 16]).unwrap().bytes(), [7; 16]);
        let error = explain(&record_id(b"short\x01").unwrap_err());
        assert!(error.ends_with(": short\\x01"), "{error}");
    }
}
