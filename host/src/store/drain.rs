//! From the outbox to MySQL: batches of the oldest rows, each exactly once.
//!
//! A batch is inserted by statements that leave alone what is there already, and leaves the outbox only when MySQL has
//! committed it. So whatever ends in between, the next try begins with the same rows and changes nothing twice. A row that
//! MySQL refuses is found by halving its batch, and put aside; it holds up nobody.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Transaction, params};

use super::{
    StoreError, migrate,
    mysql::{InsertError, Inserter, Rows},
    reader::Readers,
    record::Row,
    sqlite,
    writer::{Freed, Writer},
};
use crate::{metrics::StoreMetrics, shutdown::Stop};

/// Between tries while MySQL does not take rows: doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

pub struct Drain {
    pub mysql: Arc<Rows>,
    pub writer: Arc<Writer>,
    pub readers: Arc<Readers>,
    pub metrics: Arc<StoreMetrics>,
}

/// Why a batch is still in the outbox.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("MySQL: {0}")]
    MySql(#[from] mysql_async::Error),
    #[error("MySQL does not take records: {0}")]
    Insert(String),
    #[error("{0}")]
    Outbox(#[from] StoreError),
    #[error("MySQL cannot be brought up to date: {0}")]
    Migrate(#[from] migrate::MigrateError),
}

impl Drain {
    /// Moves rows until told to stop; a batch under way is finished or left for the next time.
    pub async fn run(self, mut stop: Stop) {
        let mut connection = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let moved = tokio::select! {
                moved = self.batch(&mut connection) => moved,
                () = stop.wait() => return,
            };
            match moved {
                Ok(true) => pause = FIRST_PAUSE,
                Ok(false) => {
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        () = self.writer.appended.notified() => {}
                        () = stop.wait() => return,
                    }
                }
                Err(error) => {
                    connection = None;
                    self.metrics.drain_failures.inc();
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "records stay in the outbox");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.wait() => return,
                    }
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Moves the oldest rows; false: there are none.
    async fn batch(&self, connection: &mut Option<Inserter>) -> Result<bool, Failure> {
        let batch = self.readers.read(sqlite::oldest).await?;
        let oldest = batch.first().map(|(_, row)| row.id.at());
        self.metrics.oldest_seconds.set(oldest.map_or(0.0, age));
        let (Some((first, _)), Some((last, _))) = (batch.first(), batch.last()) else { return Ok(false) };
        let (first, last) = (*first, *last);
        let connection = match connection {
            Some(connection) => connection,
            None => {
                migrate::mysql_up(self.mysql.pool()).await?;
                connection.insert(self.mysql.inserter().await?)
            }
        };
        let rows: Vec<Row> = batch.into_iter().map(|(_, row)| row).collect();
        let mut rest = rows.as_slice();
        let mut refused = Vec::new();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(connection.fitting(rest));
            self.insert(connection, now, &mut refused).await?;
            rest = later;
        }
        let dead = refused.len();
        let left = move |transaction: &Transaction<'_>| leave(transaction, first, last, &refused);
        let gone = self.writer.change(left).await?;
        self.metrics.dead_letters.inc_by(dead as u64);
        self.metrics.drained.inc_by(gone.saturating_sub(dead) as u64);
        Ok(true)
    }

    /// Inserts rows; those that MySQL will never take are added to `refused`.
    async fn insert(
        &self,
        connection: &mut Inserter,
        rows: &[Row],
        refused: &mut Vec<(Row, String)>,
    ) -> Result<(), Failure> {
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            match (connection.insert(part).await, part) {
                (Ok(()), _) => {}
                (Err(InsertError::Later(why)), _) => return Err(Failure::Insert(why)),
                (Err(InsertError::Row(error)), [row]) => {
                    tracing::error!(
                        tenant.name = %row.collection.tenant,
                        record.collection = %row.collection.name,
                        record.id = %row.id,
                        %error,
                        "MySQL refuses a record: it is among the dead letters"
                    );
                    refused.push((row.clone(), error));
                }
                (Err(InsertError::Row(_)), part) => {
                    let (one, other) = part.split_at(part.len() / 2);
                    parts.extend([other, one]);
                }
            }
        }
        Ok(())
    }
}

/// Takes rows out of the outbox, those refused to the dead letters. These remain their tenant's bytes, so that they too are
/// bounded.
fn leave(transaction: &Transaction<'_>, first: i64, last: i64, refused: &[(Row, String)]) -> rusqlite::Result<Freed> {
    let sql = "DELETE FROM records WHERE seq BETWEEN ?1 AND ?2 RETURNING id, tenant, length(data)";
    let mut statement = transaction.prepare_cached(sql)?;
    let gone = statement.query_map([first, last], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?, row.get(2)?)))?;
    let gone: Vec<([u8; 16], String, usize)> = gone.collect::<Result<_, _>>()?;
    let rows = gone.len();
    let dead: HashSet<[u8; 16]> = refused.iter().map(|(row, _)| row.id.bytes()).collect();
    let drained = gone.into_iter().filter(|(id, ..)| !dead.contains(id));
    let bytes = drained.map(|(_, tenant, length)| (tenant, length)).collect();
    // Into the room that the others leave: a full outbox must not keep them all.
    for (Row { id, collection, data }, error) in refused {
        transaction.execute(
            "INSERT OR IGNORE INTO dead_letters (id, tenant, collection, data, error) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.bytes(), &*collection.tenant, &*collection.name, data, error],
        )?;
    }
    Ok(Freed { rows, bytes })
}

/// Seconds since a time in milliseconds.
fn age(at: u64) -> f64 {
    let at = UNIX_EPOCH + Duration::from_millis(at);
    SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64()
}
