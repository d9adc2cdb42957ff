//! Rows on their way into MySQL.

use std::{collections::HashSet, time::Instant};

use mysql_async::{Conn, Error, Params, Value, prelude::Queryable};

use crate::store::{
    mysql::{
        QUERY_DEADLINE,
        connections::Lent,
        errors::{explain, is_of_row, without_values},
    },
    record::Row,
};

/// Most bytes of one statement. If half of what the server takes (`max_allowed_packet`) is less, that counts.
const MAX_STATEMENT: usize = 8 << 20;
/// Statements become no smaller than this for a server that has no room for larger ones.
const MIN_STATEMENT: usize = 64 << 10;
/// Bytes that a statement needs for each row besides its data.
const ROW_STATEMENT_BYTES: usize = 300;
/// Most rows of one statement.
pub const STATEMENT_ROWS: usize = 1 << 10;
/// Prepared statements that a connection keeps: those for each number of rows, and some others.
pub const KEPT_STATEMENTS: usize = 16;
const _: () = assert!(STATEMENT_ROWS.ilog2() as usize + 4 < KEPT_STATEMENTS);

/// MySQL's errors ER_DUP_ENTRY and ER_TRANS_CACHE_FULL.
const DUPLICATE: u16 = 1062;
const TRANSACTION_TOO_LARGE: u16 = 1197;

/// Why rows were not taken.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// The server will never take one of these rows.
    #[error("{0}")]
    Row(String),
    /// The server may take them later.
    #[error("{}", explain(.0))]
    Later(#[source] Error),
}

impl From<Error> for InsertError {
    fn from(error: Error) -> Self {
        if is_of_row(&error) { Self::Row(without_values(&error)) } else { Self::Later(error) }
    }
}

/// A connection to insert with. After [`InsertError::Later`] it must not be used again.
pub struct Inserter<'c> {
    connection: Lent<'c>,
    /// Most bytes that the server takes at once.
    packet: usize,
    /// Most bytes of one statement, and most rows.
    statement: usize,
    pub most_rows: usize,
}

impl<'c> Inserter<'c> {
    pub async fn new(mut connection: Lent<'c>) -> Result<Self, Error> {
        let packet = max_packet(&mut connection, "@@max_allowed_packet").await?;
        Ok(Self { connection, packet, statement: MAX_STATEMENT.min(packet / 2), most_rows: STATEMENT_ROWS })
    }

    /// Runs another statement.
    pub async fn run<T>(&mut self, work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>) -> Result<T, Error> {
        self.connection.run(deadline(), work).await
    }

    /// Inserts the rows that are not there yet, all or none. Only a row with the same tenant, collection and id is
    /// there already.
    pub async fn insert(&mut self, rows: &[&Row]) -> Result<(), InsertError> {
        // The driver would report a statement that is too long as a broken connection.
        if let [row] = rows
            && row.data.len() + ROW_STATEMENT_BYTES > self.packet
        {
            // It may have been raised since. Only new connections have it.
            let now =
                max_packet(&mut self.connection, "@@global.max_allowed_packet").await.map_err(InsertError::Later)?;
            if now > self.packet {
                return Err(InsertError::Later(Error::Other("max_allowed_packet was raised".into())));
            }
            return Err(InsertError::Row(format!("it has more bytes than max_allowed_packet allows, {}", self.packet)));
        }
        let inserted = match self.try_insert(rows).await {
            Err(Error::Server(server)) if server.code == DUPLICATE => {
                let there = self.there(rows).await?;
                let missing: Vec<_> = rows.iter().copied().filter(|row| !there.contains(&key(row))).collect();
                if missing.len() == rows.len() {
                    // Another unique key than that of records.
                    return Err(Error::Server(server).into());
                }
                // Those that are there came from here, when the answer was lost.
                if missing.is_empty() { Ok(()) } else { self.try_insert(&missing).await }
            }
            inserted => inserted,
        };
        if let Err(Error::Server(server)) = &inserted
            && server.code == TRANSACTION_TOO_LARGE
        {
            self.statement = (self.statement / 2).max(MIN_STATEMENT);
        }
        inserted.map_err(InsertError::from)
    }

    async fn try_insert(&mut self, rows: &[&Row]) -> Result<(), Error> {
        // Hardly ever a row has a time of its own.
        let with_times = rows.iter().any(|row| row.at.is_some());
        let (columns, place) = if with_times { ("data, at", "(?,?,?,?,?)") } else { ("data", "(?,?,?,?)") };
        let places = vec![place; rows.len()].join(",");
        let sql = format!("INSERT INTO records (tenant, collection, id, {columns}) VALUES {places}");
        let (mut values, mut times) = (Vec::with_capacity(5 * rows.len()), Vec::new());
        for row in rows {
            values.extend(key(row).map(Value::Bytes));
            values.push(Value::Bytes(row.data.clone()));
            if with_times {
                values.push(row.at.map_or(Value::NULL, Value::UInt));
            }
            if let Some(at) = row.at {
                times.extend(key(row).map(Value::Bytes));
                times.push(Value::UInt(at));
            }
        }
        let rows = (sql, Params::Positional(values));
        let insert = async |connection: &mut Conn| {
            if times.is_empty() {
                return connection.exec_drop(rows.0, rows.1).await;
            }
            let places = vec!["(?,?,?,?)"; times.len() / 4].join(",");
            let sql = format!("REPLACE INTO record_times (tenant, collection, id, at) VALUES {places}");
            together(connection, vec![(sql, Params::Positional(times)), rows]).await
        };
        self.connection.run(deadline(), insert).await
    }

    /// The keys of those of these rows that are there already.
    async fn there(&mut self, rows: &[&Row]) -> Result<HashSet<Key>, Error> {
        let keys = vec!["(?,?,?)"; rows.len()].join(",");
        let sql = format!("SELECT tenant, collection, id FROM records WHERE (tenant, collection, id) IN ({keys})");
        let values = rows.iter().copied().flat_map(key).map(Value::Bytes).collect();
        let found: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> = self
            .connection
            .run(deadline(), async |connection| connection.exec(sql, Params::Positional(values)).await)
            .await?;
        Ok(found.into_iter().map(|(tenant, collection, id)| [tenant, collection, id]).collect())
    }

    /// How many of these rows fit into one statement, at least one: as many as [`statement_rows`] says.
    pub fn fitting<'r>(&self, rows: impl Iterator<Item = &'r Row>) -> usize {
        let mut bytes = 0;
        let fits = |row: &&Row| {
            bytes += row.data.len() + ROW_STATEMENT_BYTES;
            bytes <= self.statement
        };
        statement_rows(rows.take(self.most_rows).take_while(fits).count())
    }
}

/// Rows of a statement, of which there are at most this many: a power of two, so that nearly all statements are among
/// those that the driver keeps. Another one is prepared by the server first, with an answer for each of its parameters.
pub fn statement_rows(rows: usize) -> usize {
    1 << rows.max(1).ilog2()
}

/// Runs statements in one transaction.
pub async fn together(connection: &mut Conn, statements: Vec<(String, Params)>) -> Result<(), Error> {
    connection.query_drop("START TRANSACTION").await?;
    for (sql, parameters) in statements {
        if let Err(error) = connection.exec_drop(sql, parameters).await {
            // If it cannot be rolled back, the connection is gone, and so is what it has done.
            connection.query_drop("ROLLBACK").await?;
            return Err(error);
        }
    }
    connection.query_drop("COMMIT").await
}

async fn max_packet(connection: &mut Lent<'_>, variable: &str) -> Result<usize, Error> {
    let sql = format!("SELECT {variable}");
    let packet = connection.run(deadline(), async |connection| connection.query_first(sql).await).await?;
    Ok(packet.unwrap_or(MAX_STATEMENT))
}

fn deadline() -> Instant {
    Instant::now() + QUERY_DEADLINE
}

/// A row's key: its tenant, collection and id.
type Key = [Vec<u8>; 3];

fn key(row: &Row) -> Key {
    [row.collection.tenant.as_bytes().to_vec(), row.collection.name.as_bytes().to_vec(), row.id.bytes().to_vec()]
}
