//! Moves rows from the outbox to MySQL in batches, the oldest first, each row exactly once. While MySQL is away they
//! wait, and it is tried again after growing pauses.
//!
//! A batch is inserted by statements that leave alone the rows that are there already. It leaves the outbox only after
//! MySQL has committed it. So whatever fails in between, the next try begins with the same rows and inserts none twice.
//! A row that MySQL refuses is found by halving its batch, and is put aside. It holds up no other row.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Transaction, params};

use crate::{
    backoff::{Backoff, Pauses},
    metrics::Metrics,
    shutdown::Stop,
    store::{
        StoreError, migrate,
        mysql::{InsertError, Inserter, RecordTable},
        reader::ReadConnections,
        record::{RecordId, Row},
        sqlite,
        writer::{Freed, Writer},
    },
};

/// The pauses between tries while MySQL does not take rows.
const PAUSES: Pauses =
    Pauses { free: 0, first: Duration::from_millis(100), longest: Duration::from_secs(5), jitter: false };

pub struct Drain {
    pub mysql: Arc<RecordTable>,
    pub writer: Arc<Writer>,
    pub readers: Arc<ReadConnections>,
    pub metrics: Arc<Metrics>,
}

/// Why a batch is still in the outbox.
#[derive(Debug, thiserror::Error)]
enum DrainError {
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
    /// Moves rows until told to stop. A batch under way is finished, or left for the next start.
    pub async fn run(self, mut stop: Stop) {
        let mut connection = None;
        let mut backoff = Backoff::new(PAUSES);
        loop {
            let moved = tokio::select! {
                moved = self.batch(&mut connection) => moved,
                () = stop.wait() => return,
            };
            match moved {
                Ok(true) => backoff.reset(),
                Ok(false) => {
                    backoff.reset();
                    tokio::select! {
                        () = self.writer.appended.notified() => {}
                        () = stop.wait() => return,
                    }
                }
                Err(error) => {
                    connection = None;
                    if !matches!(error, DrainError::Outbox(_)) {
                        // It may have become read-only, since another has taken its place.
                        self.mysql.reconnect();
                    }
                    let pause = backoff.fail();
                    self.metrics.records_drain_failures.inc();
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "records stay in the outbox");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.wait() => return,
                    }
                }
            }
        }
    }

    /// Moves the oldest rows. False: there are none.
    async fn batch(&self, connection: &mut Option<Inserter>) -> Result<bool, DrainError> {
        let batch = self.readers.read(sqlite::oldest).await?;
        let oldest = batch.first().map(|(_, row)| row.id.at());
        self.metrics.records_oldest_seconds.set(oldest.map_or(0.0, age));
        if batch.is_empty() {
            return Ok(false);
        }
        let connection = match connection {
            Some(connection) => connection,
            None => {
                migrate::mysql_up(&self.mysql.pool()).await?;
                connection.insert(self.mysql.inserter().await?)
            }
        };
        let (places, rows): (Vec<i64>, Vec<Row>) = batch.into_iter().unzip();
        let mut rest = rows.as_slice();
        let mut refused = Vec::new();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(connection.fitting(rest));
            self.insert(connection, now, &mut refused).await?;
            rest = later;
        }
        let dead = refused.len();
        let left = move |transaction: &Transaction<'_>| leave(transaction, &places, &rows, &refused);
        let gone = self.writer.change(left).await?;
        self.metrics.records_dead_letters.inc_by(dead as u64);
        self.metrics.records_drained.inc_by(gone.saturating_sub(dead) as u64);
        Ok(true)
    }

    /// Inserts rows. Rows that MySQL will never take are added to `refused`.
    async fn insert(
        &self,
        connection: &mut Inserter,
        rows: &[Row],
        refused: &mut Vec<(Row, String)>,
    ) -> Result<(), DrainError> {
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            match (connection.insert(part).await, part) {
                (Ok(()), _) => {}
                (Err(InsertError::Later(why)), _) => return Err(DrainError::Insert(why)),
                (Err(InsertError::Row(error)), [row]) => {
                    tracing::error!(
                        tenant.name = %row.collection.tenant,
                        record.id = %row.id,
                        record.collection = %row.collection.name,
                        %error,
                        "MySQL refuses a record; it is now among the dead letters"
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

/// Takes rows out of the outbox. Refused rows go to the dead letters, where they still count as their tenant's bytes,
/// so that they are bounded too. If retention has deleted a row since it was read, its place may have another row by
/// now. That row stays.
fn leave(
    transaction: &Transaction<'_>,
    places: &[i64],
    rows: &[Row],
    refused: &[(Row, String)],
) -> rusqlite::Result<Freed> {
    let dead: HashSet<RecordId> = refused.iter().map(|(row, _)| row.id).collect();
    let mut statement = transaction.prepare_cached("DELETE FROM records WHERE seq = ?1 AND id = ?2")?;
    let mut freed = Freed::default();
    for (place, row) in places.iter().zip(rows) {
        if statement.execute(params![place, row.id.bytes()])? == 0 {
            continue;
        }
        freed.rows += 1;
        if !dead.contains(&row.id) {
            freed.add(&row.collection.tenant, row.cost());
        }
    }
    // The dead letters take the room that the other rows leave. Otherwise a full outbox would have to keep them all.
    for (Row { id, collection, data }, error) in refused {
        transaction.execute(
            "INSERT OR IGNORE INTO dead_letters (id, tenant, collection, data, error) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.bytes(), &*collection.tenant, &*collection.name, data, error],
        )?;
    }
    Ok(freed)
}

/// Seconds since a time in milliseconds.
fn age(at: u64) -> f64 {
    let at = UNIX_EPOCH + Duration::from_millis(at);
    SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Collection, rows};

    #[test]
    fn a_row_in_the_place_of_one_that_was_read_stays() {
        let file = std::env::temp_dir().join(format!("edge-relay-drain-{}", std::process::id()));
        let mut connection = sqlite::open(&file, 1 << 20).unwrap();
        migrate::sqlite_up(&mut connection).unwrap();
        let collection = Collection::new(&"t".into(), "c").unwrap();
        let row = |data: &str| rows(&collection, vec![data.into()]).unwrap();
        sqlite::insert(&connection, &row("read")).unwrap();
        let (places, read): (Vec<i64>, Vec<Row>) = sqlite::oldest(&connection).unwrap().into_iter().unzip();
        // Meanwhile retention deletes the row, and another comes.
        connection.execute("DELETE FROM records", []).unwrap();
        sqlite::insert(&connection, &row("another")).unwrap();
        assert_eq!(sqlite::oldest(&connection).unwrap()[0].0, places[0], "the place is taken again");
        let transaction = connection.transaction().unwrap();
        assert_eq!(leave(&transaction, &places, &read, &[]).unwrap().rows, 0);
        transaction.commit().unwrap();
        assert_eq!(sqlite::oldest(&connection).unwrap()[0].1.data, b"another");
        // The last connection takes the write-ahead log with it.
        drop(connection);
        std::fs::remove_file(file).unwrap();
    }
}
