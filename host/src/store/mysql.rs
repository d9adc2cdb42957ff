//! MySQL: the database that an outbox's rows go to and are read from.

use std::{collections::HashSet, sync::Arc, time::Duration};

use config::{MySqlUrl, grants::Secret};
use mysql_async::{
    Conn, DriverError, Error, Opts, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, SslOpts, Value,
    prelude::{FromRow, Query as _, Queryable, WithParams},
};
use tokio::time::timeout;

use crate::{
    store::{
        StoreError,
        record::{Collection, Part, Query, Record, RecordId, Row},
    },
    sync::Mutex,
    tls,
};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 8;
/// Deadlines for a connection and for a statement.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_DEADLINE: Duration = Duration::from_secs(30);
/// How old a connection may become.
const GREATEST_AGE: Duration = Duration::from_secs(300);
/// Most bytes of one statement. If half of what the server takes (`max_allowed_packet`) is less, that counts.
const MAX_STATEMENT: usize = 8 << 20;
/// Bytes that a statement needs for each row besides its data.
const ROW_STATEMENT_BYTES: usize = 300;
/// Most rows of one statement.
const STATEMENT_ROWS: usize = 1000;

/// MySQL's errors ER_NO_SUCH_TABLE and ER_DUP_ENTRY.
const NO_SUCH_TABLE: u16 = 1146;
const DUPLICATE: u16 = 1062;

/// Why rows were not taken.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// The server will never take one of these rows.
    #[error("{0}")]
    Row(String),
    /// The server may take them later.
    #[error("{0}")]
    Later(String),
}

/// The driver refuses the URL of the database. Its reason is left out: it may repeat parts of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("store.url is not a MySQL URL")]
pub struct BadUrl;

/// Reads a `mysql://` URL as the driver does. The check of the configuration uses it.
pub fn parse_url(url: &str) -> Option<MySqlUrl> {
    let opts = Opts::from_url(url).ok()?;
    Some(MySqlUrl { has_database: opts.db_name().is_some(), has_password: opts.pass().is_some() })
}

/// Whether a URL says what to prefer.
fn names_prefer_socket(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "prefer_socket")
}

/// The table of records.
pub struct RecordTable {
    opts: Opts,
    pool: Mutex<Pool>,
}

impl RecordTable {
    /// Connects when it is first used.
    pub fn new(url: &Secret) -> Result<Self, BadUrl> {
        let opts = Opts::from_url(url.reveal()).map_err(|_| BadUrl)?;
        // A connection that has not been used for a while is closed: firewalls on the way drop such connections
        // silently.
        let bounds = PoolConstraints::new(0, MAX_CONNECTIONS).unwrap_or_default();
        let pool = PoolOpts::new()
            .with_constraints(bounds)
            .with_inactive_connection_ttl(Duration::from_secs(60))
            // Reads follow a server that has moved.
            .with_abs_conn_ttl(Some(GREATEST_AGE))
            .with_abs_conn_ttl_jitter(Some(GREATEST_AGE / 4));
        let tls = opts.ssl_opts().cloned().map(trusting);
        let prefers_socket = opts.prefer_socket() && names_prefer_socket(url.reveal());
        let opts = OptsBuilder::from_opts(opts).ssl_opts(tls).pool_opts(pool).stmt_cache_size(8);
        // A path that the server names may be another server's here.
        let opts = opts.prefer_socket(prefers_socket);
        // Each statement is its own transaction, whatever the server's default.
        let opts = opts.setup(vec!["SET autocommit = 1"]);
        let opts = Opts::from(opts);
        Ok(Self { pool: Mutex::new(Pool::new(opts.clone())), opts })
    }

    pub fn pool(&self) -> Pool {
        self.pool.lock().clone()
    }

    /// Has what begins from now on connect anew: the address may be another server's. What is under way goes on.
    pub fn reconnect(&self) {
        let before = std::mem::replace(&mut *self.pool.lock(), Pool::new(self.opts.clone()));
        tokio::spawn(async move {
            if let Err(error) = before.disconnect().await {
                tracing::debug!(%error, "connections to MySQL were not closed");
            }
        });
    }

    pub async fn connect(&self) -> Result<Conn, Error> {
        within(CONNECT_DEADLINE, self.pool().get_conn()).await
    }

    /// A connection to insert with.
    pub async fn inserter(&self) -> Result<Inserter, Error> {
        let mut connection = self.connect().await?;
        let packet = within(QUERY_DEADLINE, connection.query_first::<usize, _>("SELECT @@max_allowed_packet")).await?;
        Ok(Inserter { connection, packet: packet.unwrap_or(MAX_STATEMENT) })
    }

    /// The records that a query finds.
    pub async fn select(&self, collection: &Collection, query: &Query) -> Result<Part, StoreError> {
        let mut connection = self.connect().await.map_err(unavailable)?;
        let (from, to) = query.bounds();
        // The lengths come first, so that large rows are not fetched only to be dropped.
        let lengths = Select { columns: "id, LENGTH(data)", collection, query, from, to, limit: query.limit() };
        let lengths: Vec<(Vec<u8>, usize)> = match lengths.fetch(&mut connection).await {
            // There are no rows before there is a table: the drain makes it.
            Err(Error::Server(server)) if server.code == NO_SUCH_TABLE => return Ok(Part::default()),
            lengths => lengths.map_err(unavailable)?,
        };
        let count = query.fitting(lengths.iter().map(|(_, length)| *length));
        let Some((last, _)) = count.checked_sub(1).and_then(|nth| lengths.get(nth)) else { return Ok(Part::default()) };
        let (last, is_cut) = (record_id(last)?, count < lengths.len() || lengths.len() == query.limit());
        // Rows may come and go in between, so the second statement has bounds of its own.
        let (from, to) = if query.newest_first() { (last, to) } else { (from, last.next()) };
        let rows = Select { columns: "id, data", collection, query, from, to, limit: count };
        let rows: Vec<(Vec<u8>, Vec<u8>)> = rows.fetch(&mut connection).await.map_err(unavailable)?;
        let records: Vec<_> = rows.into_iter().map(record).collect::<Result<_, _>>()?;
        let cut_at = match records.last() {
            // Some have come, so that not all were fetched.
            Some(end) if records.len() == count && end.id != last => Some(end.id),
            _ => is_cut.then_some(last),
        };
        Ok(Part { records, cut_at })
    }

    /// The first collection of a tenant whose name is at least `from` and below `to`.
    pub async fn collection(&self, tenant: &Arc<str>, from: &str, to: &str) -> Result<Option<Collection>, StoreError> {
        let found = async {
            let mut connection = self.connect().await?;
            let sql = "SELECT collection FROM records WHERE tenant = ? AND collection >= ? AND collection < ? \
                ORDER BY collection LIMIT 1";
            let parameters = (tenant.as_bytes(), from.as_bytes(), to.as_bytes());
            within(QUERY_DEADLINE, connection.exec_first::<Vec<u8>, _, _>(sql, parameters)).await
        };
        let name = found.await.map_err(unavailable)?;
        let name = name.map(|name| String::from_utf8_lossy(&name).into());
        Ok(name.map(|name| Collection { tenant: Arc::clone(tenant), name }))
    }

    /// Deletes at most `most` rows with ids below `before`. Returns how many.
    pub async fn delete_before(
        &self,
        collection: &Collection,
        before: RecordId,
        most: usize,
    ) -> Result<u64, StoreError> {
        let deleted = async {
            let mut connection = self.connect().await?;
            let parameters = (collection.tenant.as_bytes(), collection.name.as_bytes(), before.bytes().to_vec(), most);
            let sql = "DELETE FROM records WHERE tenant = ? AND collection = ? AND id < ? LIMIT ?";
            within(QUERY_DEADLINE, connection.exec_drop(sql, parameters)).await?;
            Ok(connection.affected_rows())
        };
        deleted.await.map_err(unavailable)
    }
}

/// A statement that reads rows of a collection, in a query's order.
struct Select<'s> {
    columns: &'static str,
    collection: &'s Collection,
    query: &'s Query,
    from: RecordId,
    to: RecordId,
    limit: usize,
}

impl Select<'_> {
    async fn fetch<T: FromRow + Send + 'static>(&self, connection: &mut Conn) -> Result<Vec<T>, Error> {
        let Self { columns, collection, query, from, to, limit } = self;
        let order = if query.newest_first() { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT {columns} FROM records WHERE tenant = ? AND collection = ? AND id >= ? AND id < ? \
             ORDER BY id {order} LIMIT ?"
        );
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let [tenant, name] = [&collection.tenant, &collection.name].map(|name| bytes(name.as_bytes()));
        let [from, to] = [from, to].map(|id| bytes(&id.bytes()));
        let parameters = Params::Positional(vec![tenant, name, from, to, Value::UInt(*limit as u64)]);
        within(QUERY_DEADLINE, sql.with(parameters).fetch(connection)).await
    }
}

/// TLS to MySQL trusts the same roots as TLS to upstreams.
fn trusting(tls: SslOpts) -> SslOpts {
    // The driver would fail on a root that it cannot parse.
    // `serve` has read them before, and has ended with an error if it could not.
    let roots = tls::roots().unwrap_or_default().iter().map(|root| root.to_vec().into()).collect();
    tls.with_disable_built_in_roots(true).with_root_certs(roots)
}

fn unavailable(error: Error) -> StoreError {
    StoreError::Unavailable(format!("MySQL: {error}"))
}

fn record((id, data): (Vec<u8>, Vec<u8>)) -> Result<Record, StoreError> {
    Ok(Record { id: record_id(&id)?, data })
}

/// An id that has not its 16 bytes was written by somebody else, into a table that somebody else has changed.
fn record_id(id: &[u8]) -> Result<RecordId, StoreError> {
    let foreign = || format!("MySQL: the id of a record is not a UUID of 16 bytes: {}", id.escape_ascii());
    let id = <[u8; 16]>::try_from(id).map_err(|_| StoreError::Unavailable(foreign()))?;
    Ok(RecordId::from(id))
}

/// A connection to insert with. After [`InsertError::Later`] it must not be used again.
pub struct Inserter {
    connection: Conn,
    /// Most bytes that the server takes at once.
    packet: usize,
}

impl Inserter {
    /// Inserts the rows that are not there yet, all or none. Only a row with the same tenant, collection and id is there
    /// already.
    pub async fn insert(&mut self, rows: &[Row]) -> Result<(), InsertError> {
        // The driver would report a statement that is too long as a broken connection.
        if let [row] = rows
            && row.data.len() + ROW_STATEMENT_BYTES > self.packet
        {
            return Err(InsertError::Row(format!("it has more bytes than max_allowed_packet allows, {}", self.packet)));
        }
        match self.try_insert(rows.iter()).await {
            Err(Error::Server(server)) if server.code == DUPLICATE => {
                let there = self.there(rows).await?;
                let missing: Vec<_> = rows.iter().filter(|row| !there.contains(&key(row))).collect();
                if missing.len() == rows.len() {
                    // Another unique key than that of records.
                    return Err(InsertError::Row(server.to_string()));
                }
                // Those that are there came from here, when the answer was lost.
                match missing.is_empty() {
                    true => Ok(()),
                    false => self.try_insert(missing.into_iter()).await.map_err(InsertError::from),
                }
            }
            inserted => inserted.map_err(InsertError::from),
        }
    }

    async fn try_insert(&mut self, rows: impl Iterator<Item = &Row>) -> Result<(), Error> {
        let mut sql = String::from("INSERT INTO records (tenant, collection, id, data) VALUES ");
        let mut values = Vec::new();
        for (nth, row) in rows.enumerate() {
            sql.push_str(if nth == 0 { "(?,?,?,?)" } else { ",(?,?,?,?)" });
            values.extend(key(row).map(Value::Bytes));
            values.push(Value::Bytes(row.data.clone()));
        }
        within(QUERY_DEADLINE, self.connection.exec_drop(sql, Params::Positional(values))).await
    }

    /// The keys of those of these rows that are there already.
    async fn there(&mut self, rows: &[Row]) -> Result<HashSet<Key>, Error> {
        let keys = vec!["(?,?,?)"; rows.len()].join(",");
        let sql = format!("SELECT tenant, collection, id FROM records WHERE (tenant, collection, id) IN ({keys})");
        let values = rows.iter().flat_map(key).map(Value::Bytes).collect();
        let found = self.connection.exec::<(Vec<u8>, Vec<u8>, Vec<u8>), _, _>(sql, Params::Positional(values));
        let found = within(QUERY_DEADLINE, found).await?;
        Ok(found.into_iter().map(|(tenant, collection, id)| [tenant, collection, id]).collect())
    }

    /// How many of these rows fit into one statement, at least one.
    pub fn fitting(&self, rows: &[Row]) -> usize {
        let most = MAX_STATEMENT.min(self.packet / 2);
        let mut bytes = 0;
        let fits = |row: &&Row| {
            bytes += row.data.len() + ROW_STATEMENT_BYTES;
            bytes <= most
        };
        rows.iter().take(STATEMENT_ROWS).take_while(fits).count().max(1)
    }
}

/// A row's key: its tenant, collection and id.
type Key = [Vec<u8>; 3];

fn key(row: &Row) -> Key {
    [row.collection.tenant.as_bytes().to_vec(), row.collection.name.as_bytes().to_vec(), row.id.bytes().to_vec()]
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    timeout(deadline, work).await.unwrap_or_else(|_| Err(late()))
}

impl From<Error> for InsertError {
    /// Tells whether a row or the server is at fault. An error that is not known to be a row's counts as the server's,
    /// and its rows wait.
    fn from(error: Error) -> Self {
        let of_row = match &error {
            Error::Driver(DriverError::PacketTooLarge) => true,
            // Data exceptions and integrity constraints by their class (SQLSTATE), the rest by number: packet too large,
            // row too large, incorrect value, a CHECK constraint (MySQL's and MariaDB's).
            Error::Server(server) => {
                server.state.starts_with("22")
                    || server.state.starts_with("23")
                    || matches!(server.code, 1153 | 1118 | 1366 | 3819 | 4025)
            }
            _ => false,
        };
        if of_row { Self::Row(error.to_string()) } else { Self::Later(error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_none_is_named() {
        assert_eq!(record((vec![7; 16], b"data".to_vec())).unwrap().id.bytes(), [7; 16]);
        let error = record((b"short\x01".to_vec(), Vec::new())).unwrap_err();
        assert_eq!(error.reason(), "unavailable");
        assert!(error.to_string().ends_with(": short\\x01"), "{error}");
    }
}
