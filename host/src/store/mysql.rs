//! MySQL: the database that an outbox's rows go to and are read from.

use std::{sync::Arc, time::Duration};

use config::{MySqlUrl, grants::Secret};
use mysql_async::{
    Conn, DriverError, Error, Opts, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, SslOpts, Value,
    prelude::{Query as _, Queryable, WithParams},
};
use tokio::time::timeout;

use crate::{
    store::{
        StoreError,
        record::{Collection, Query, Record, RecordId, Row},
    },
    tls,
};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 8;
/// Deadlines for a connection and for a statement.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of one statement. If half of what the server takes (`max_allowed_packet`) is less, that counts.
const MAX_STATEMENT: usize = 8 << 20;
/// Bytes that a statement needs for each row besides its data.
const ROW_STATEMENT_BYTES: usize = 300;
/// Most rows of one statement.
const STATEMENT_ROWS: usize = 1000;

/// MySQL's error ER_NO_SUCH_TABLE.
const NO_SUCH_TABLE: u16 = 1146;

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

/// The table of records.
pub struct RecordTable {
    pool: Pool,
}

impl RecordTable {
    /// Connects when it is first used.
    pub fn new(url: &Secret) -> Result<Self, BadUrl> {
        let opts = Opts::from_url(url.reveal()).map_err(|_| BadUrl)?;
        // A connection that has not been used for a while is closed: firewalls on the way drop such connections
        // silently.
        let bounds = PoolConstraints::new(0, MAX_CONNECTIONS).unwrap_or_default();
        let pool = PoolOpts::new().with_constraints(bounds).with_inactive_connection_ttl(Duration::from_secs(60));
        let tls = opts.ssl_opts().cloned().map(trusting);
        let opts = OptsBuilder::from_opts(opts).ssl_opts(tls).pool_opts(pool).stmt_cache_size(8);
        // Each statement is its own transaction, whatever the server's default.
        let opts = opts.setup(vec!["SET autocommit = 1"]);
        Ok(Self { pool: Pool::new(opts) })
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub async fn connect(&self) -> Result<Conn, Error> {
        within(CONNECT_DEADLINE, self.pool.get_conn()).await
    }

    /// A connection to insert with.
    pub async fn inserter(&self) -> Result<Inserter, Error> {
        let mut connection = self.connect().await?;
        let packet = within(QUERY_DEADLINE, connection.query_first::<usize, _>("SELECT @@max_allowed_packet")).await?;
        Ok(Inserter { connection, packet: packet.unwrap_or(MAX_STATEMENT) })
    }

    /// The records that a query finds, in its order.
    pub async fn select(&self, collection: &Collection, query: &Query) -> Result<Vec<Record>, StoreError> {
        match self.try_select(collection, query).await {
            // There are no rows before there is a table: the drain makes it.
            Err(Error::Server(server)) if server.code == NO_SUCH_TABLE => Ok(Vec::new()),
            selected => selected.map_err(unavailable)?.into_iter().map(record).collect(),
        }
    }

    /// The ids and data of the records that a query finds.
    async fn try_select(&self, collection: &Collection, query: &Query) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
        let mut connection = self.connect().await?;
        let (from, to) = query.bounds();
        let order = if query.newest_first() { "DESC" } else { "ASC" };
        let of = "FROM records WHERE tenant = ? AND collection = ? AND id >= ? AND id < ? ORDER BY id";
        let parameters = |limit: usize| {
            let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
            let [tenant, name] = [&collection.tenant, &collection.name].map(|name| bytes(name.as_bytes()));
            Params::Positional(vec![tenant, name, bytes(&from.bytes()), bytes(&to.bytes()), Value::UInt(limit as u64)])
        };
        // The lengths come first, so that large rows are not fetched only to be dropped.
        let lengths = format!("SELECT LENGTH(data) {of} {order} LIMIT ?");
        let lengths = lengths.with(parameters(query.limit())).fetch::<usize, _>(&mut connection);
        let count = query.fitting(within(QUERY_DEADLINE, lengths).await?);
        let rows = format!("SELECT id, data {of} {order} LIMIT ?");
        let rows = rows.with(parameters(count)).fetch::<(Vec<u8>, Vec<u8>), _>(&mut connection);
        within(QUERY_DEADLINE, rows).await
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

/// Makes a record of its id and data. An id that has not its 16 bytes was written by somebody else, into a table that
/// somebody else has changed.
fn record((id, data): (Vec<u8>, Vec<u8>)) -> Result<Record, StoreError> {
    let foreign = |id: Vec<u8>| format!("MySQL: the id of a record is not a UUID of 16 bytes: {}", id.escape_ascii());
    let id = <[u8; 16]>::try_from(id).map_err(|id| StoreError::Unavailable(foreign(id)))?;
    Ok(Record { id: RecordId::from(id), data })
}

/// A connection to insert with. After [`InsertError::Later`] it must not be used again.
pub struct Inserter {
    connection: Conn,
    /// Most bytes that the server takes at once.
    packet: usize,
}

impl Inserter {
    /// Inserts the rows that are not there yet, all or none.
    pub async fn insert(&mut self, rows: &[Row]) -> Result<(), InsertError> {
        // The driver would report a statement that is too long as a broken connection.
        if let [row] = rows
            && row.data.len() + ROW_STATEMENT_BYTES > self.packet
        {
            return Err(InsertError::Row(format!("it has more bytes than max_allowed_packet allows, {}", self.packet)));
        }
        let mut sql = String::from("INSERT INTO records (tenant, collection, id, data) VALUES ");
        let mut values: Vec<Value> = Vec::with_capacity(rows.len() * 4);
        for (nth, Row { id, collection, data }) in rows.iter().enumerate() {
            sql.push_str(if nth == 0 { "(?,?,?,?)" } else { ",(?,?,?,?)" });
            values.push(Value::Bytes(collection.tenant.as_bytes().to_vec()));
            values.push(Value::Bytes(collection.name.as_bytes().to_vec()));
            values.push(Value::Bytes(id.bytes().to_vec()));
            values.push(Value::Bytes(data.clone()));
        }
        // A row that is there already came from here: it has the same id.
        sql.push_str(" ON DUPLICATE KEY UPDATE id = VALUES(id)");
        let inserted = self.connection.exec_drop(sql, Params::Positional(values));
        within(QUERY_DEADLINE, inserted).await.map_err(InsertError::from)
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
