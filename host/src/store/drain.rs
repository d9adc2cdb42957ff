//! Moves rows from the outbox to MySQL in batches, the oldest first, each row exactly once. While MySQL is away they
//! wait, and it is tried again after growing pauses.
//!
//! A batch is inserted, but for the rows that are there already. It leaves the outbox only after MySQL has committed
//! it. So whatever fails in between, the next try begins with the same rows and inserts none twice. A row that MySQL
//! refuses is found by halving its batch, and is put aside. From then on its tenant's rows go apart from the others', a
//! few at a time, until MySQL takes them again. So nobody's rows hold up another's.

use std::{
    collections::BTreeSet,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use mysql_async::Error;
use rusqlite::{Transaction, params};

use crate::{
    backoff::{Backoff, Pauses},
    metrics::Metrics,
    shutdown::Stop,
    store::{
        StoreError, clock, migrate,
        mysql::{InsertError, Inserter, RecordTable, STATEMENT_ROWS, explain, is_late, statement_rows},
        presence::{Presence, RENEW_EVERY},
        reader::ReadConnections,
        record::{RecordId, Row, now},
        refusals::Refusals,
        sqlite,
        sqlite::{Oldest, Passed, Placed},
        writer::{Freed, Writer},
    },
};

/// The pauses between tries while MySQL does not take rows.
const PAUSES: Pauses =
    Pauses { free: 0, first: Duration::from_millis(100), longest: Duration::from_secs(5), jitter: false };
/// Rows of a tenant some of whose rows MySQL refuses, in one turn, and how long the turn takes at most.
const APART_ROWS: usize = 256;
const APART_TURN: Duration = Duration::from_millis(200);

pub struct Drain {
    mysql: Arc<RecordTable>,
    writer: Arc<Writer>,
    readers: Arc<ReadConnections>,
    metrics: Arc<Metrics>,
    /// Tenants some of whose rows MySQL refuses, and how far the drain has passed their rows.
    apart: BTreeSet<Arc<str>>,
    passed: Passed,
    /// Whose turn among them was last.
    last_apart: Option<Arc<str>>,
    /// Whether the last try has failed.
    has_failed: bool,
    /// Most rows of one statement: fewer after one that was too slow, which has rolled back.
    most_rows: usize,
    refusals: Refusals,
    presence: Presence,
}

/// Why a batch is still in the outbox.
#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error("{}", explain(.0))]
    MySql(#[from] Error),
    #[error("{0}")]
    Outbox(#[from] StoreError),
    #[error("MySQL cannot be brought up to date: {0}")]
    Migrate(#[from] migrate::MigrateError),
}

impl DrainError {
    fn of_mysql(&self) -> Option<&Error> {
        match self {
            Self::MySql(error) | Self::Migrate(migrate::MigrateError::MySql(error)) => Some(error),
            _ => None,
        }
    }
}

/// What became of rows.
#[derive(Default)]
struct Moved<'r> {
    /// Those that are in MySQL now.
    taken: Vec<&'r Placed>,
    /// Those that MySQL refuses, and what it said.
    refused: Vec<(&'r Placed, String)>,
}

impl Moved<'_> {
    /// Whether it is time to stop. Something is decided in any time.
    fn is_over(&self, until: Option<Instant>) -> bool {
        let has_begun = !self.taken.is_empty() || !self.refused.is_empty();
        has_begun && until.is_some_and(|until| Instant::now() >= until)
    }
}

impl Drain {
    pub fn new(
        mysql: Arc<RecordTable>,
        writer: Arc<Writer>,
        readers: Arc<ReadConnections>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            mysql,
            writer,
            readers,
            metrics,
            apart: BTreeSet::new(),
            passed: None,
            last_apart: None,
            has_failed: false,
            most_rows: STATEMENT_ROWS,
            refusals: Refusals::default(),
            presence: Presence::new(),
        }
    }

    /// Moves rows until told to stop. A batch under way is finished, or left for the next start.
    pub async fn run(mut self, mut stop: Stop) {
        let mysql = Arc::clone(&self.mysql);
        let mut backoff = Backoff::new(PAUSES);
        loop {
            let failed = tokio::select! {
                failed = self.drain(&mysql, &mut backoff) => failed,
                () = stop.wait() => break,
            };
            if let Err(error) = &failed {
                self.has_failed = true;
                if let Some(error) = error.of_mysql() {
                    if is_late(error) {
                        self.most_rows = (self.most_rows / 2).max(1);
                    }
                    // It may have become read-only, since another has taken its place.
                    mysql.look_again(error);
                }
                let pause = backoff.fail();
                self.metrics.records_drain_failures.inc();
                tracing::warn!(%error, pause_ms = pause.as_millis(), "records stay in the outbox");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.wait() => break,
                }
            } else {
                // Nothing waits. The connection is free for others meanwhile.
                tokio::select! {
                    () = self.writer.appended.notified() => {}
                    () = tokio::time::sleep(RENEW_EVERY) => {}
                    () = stop.wait() => break,
                }
            }
        }
        self.presence.remove(&mysql).await;
    }

    /// Moves rows until there are none.
    async fn drain(&mut self, mysql: &RecordTable, backoff: &mut Backoff) -> Result<(), DrainError> {
        let (mut inserter, mut begun) = (None, Instant::now());
        loop {
            self.refusals.tell();
            if begun.elapsed() > mysql.greatest_age() {
                // It follows a server that has moved, and readers with it.
                (inserter, begun) = (None, Instant::now());
                mysql.forget();
            }
            let inserter = match &mut inserter {
                Some(inserter) => inserter,
                none => {
                    let oldest = self.readers.read(sqlite::oldest_time).await?;
                    if self.note_wait(oldest).is_none() && !self.presence.is_due() {
                        return Ok(());
                    }
                    none.insert(self.begin(mysql).await?)
                }
            };
            let (apart, passed) = (self.apart.clone(), self.passed);
            let oldest = self.readers.read(move |outbox| sqlite::oldest(outbox, &apart, passed)).await?;
            let waits = self.note_wait(oldest.since);
            if waits.is_none() && !self.presence.is_due() {
                return Ok(());
            }
            inserter.most_rows = self.most_rows;
            let moved = match waits {
                Some(_) => self.move_rows_of_all(inserter, oldest).await,
                None => Ok(()),
            };
            // A server that takes no rows may take this, and its tables are in use all the same.
            let renewed = self.presence.renew(inserter).await;
            moved?;
            renewed?;
            self.most_rows = (2 * self.most_rows).min(STATEMENT_ROWS);
            backoff.reset();
            if waits.is_none() {
                return Ok(());
            }
        }
    }

    /// Notes how long the oldest row has waited, which came at this time, and returns it. `None`: there is none.
    fn note_wait(&self, since: Option<u64>) -> Option<Duration> {
        let waits = since.map(|at| Duration::from_millis(now().saturating_sub(at)));
        self.metrics.outbox_oldest_seconds.set(waits.unwrap_or_default().as_secs_f64());
        waits
    }

    /// Brings the tables up to date, if they are not, and prepares to insert.
    async fn begin<'m>(&mut self, mysql: &'m RecordTable) -> Result<Inserter<'m>, DrainError> {
        let mut connection = mysql.connect().await?;
        migrate::mysql_up(&mut connection).await?;
        if std::mem::take(&mut self.has_failed) {
            // Reads may have gone to another server since. Its rows are not those of this one.
            mysql.forget();
        }
        Ok(Inserter::new(connection).await?)
    }

    /// Moves the oldest rows of the tenants whose rows do not go apart, then some of one whose rows do.
    async fn move_rows_of_all(&mut self, inserter: &mut Inserter<'_>, oldest: Oldest) -> Result<(), DrainError> {
        let Oldest { mut rows, passed, .. } = oldest;
        self.passed = passed;
        // A rest would need several small statements. It is part of the next batch.
        let whole = rows.len() / STATEMENT_ROWS * STATEMENT_ROWS;
        rows.truncate(whole + statement_rows(rows.len() - whole));
        self.move_rows(inserter, &rows, None).await?;
        self.move_apart(inserter).await
    }

    /// Moves some rows of the next tenant whose rows go apart.
    async fn move_apart(&mut self, inserter: &mut Inserter<'_>) -> Result<(), DrainError> {
        let after = self.last_apart.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = self.apart.range::<Arc<str>, _>((after, Bound::Unbounded));
        let Some(tenant) = next.next().or_else(|| self.apart.first()).cloned() else { return Ok(()) };
        self.last_apart = Some(Arc::clone(&tenant));
        let of = Arc::clone(&tenant);
        let mut rows = self.readers.read(move |outbox| sqlite::some_of(outbox, &of, APART_ROWS)).await?;
        rows.truncate(statement_rows(rows.len()));
        let taken = self.move_rows(inserter, &rows, Some(Instant::now() + APART_TURN)).await?;
        if taken == rows.len() {
            // MySQL takes them again, or there are no more.
            self.apart.remove(&tenant);
            self.passed = None;
        }
        Ok(())
    }

    /// Moves rows, as many as there is time for. Returns how many MySQL has taken.
    async fn move_rows(
        &mut self,
        inserter: &mut Inserter<'_>,
        rows: &[Placed],
        until: Option<Instant>,
    ) -> Result<usize, DrainError> {
        if rows.is_empty() {
            return Ok(0);
        }
        let mut moved = Moved::default();
        let mut rest: Vec<&Placed> = rows.iter().collect();
        let inserted = loop {
            if rest.is_empty() || moved.is_over(until) {
                break Ok(());
            }
            let fitting = inserter.fitting(rest.iter().map(|(_, row)| row));
            let later = rest.split_off(fitting);
            if let Err(error) = self.insert(inserter, rest, until, &mut moved).await {
                break Err(error);
            }
            rest = later;
        };
        // Those that went through are done, whatever became of the others.
        let (taken, dead) = (moved.taken.len(), moved.refused.len());
        let left = Left::new(&moved);
        let gone = self.writer.change(move |transaction| left.leave(transaction)).await?;
        moved.refused.iter().for_each(|((_, row), error)| self.refusals.add(row, error));
        self.refusals.tell();
        self.metrics.records_dead_letters.inc_by(dead as u64);
        self.metrics.records_drained.inc_by(gone.saturating_sub(dead) as u64);
        inserted?;
        Ok(taken)
    }

    /// Inserts rows. Where MySQL will never take one, the others of its tenant are left for later, unless they go apart
    /// already and there is time `until` then.
    async fn insert<'r>(
        &mut self,
        inserter: &mut Inserter<'_>,
        part: Vec<&'r Placed>,
        until: Option<Instant>,
        moved: &mut Moved<'r>,
    ) -> Result<(), Error> {
        let mut parts = vec![part];
        while let Some(mut part) = parts.pop() {
            match until {
                None => part.retain(|(_, row)| !self.apart.contains(&row.collection.tenant)),
                Some(_) if moved.is_over(until) => return Ok(()),
                Some(_) => {}
            }
            let some: Vec<_> = part.iter().map(|(_, row)| row).collect();
            if some.is_empty() {
                continue;
            }
            match (inserter.insert(&some).await, &part[..]) {
                (Ok(()), _) => moved.taken.extend(part),
                (Err(InsertError::Later(error)), _) => return Err(error),
                (Err(InsertError::Row(error)), [row]) => {
                    self.apart.insert(Arc::clone(&row.1.collection.tenant));
                    moved.refused.push((row, error));
                }
                (Err(InsertError::Row(_)), part) => {
                    let (one, other) = part.split_at(part.len() / 2);
                    parts.extend([other.to_vec(), one.to_vec()]);
                }
            }
        }
        Ok(())
    }
}

/// Rows that leave the outbox.
struct Left {
    /// Their places, their ids, and how much room they leave.
    taken: Vec<(i64, RecordId, Arc<str>, u64)>,
    refused: Vec<(Placed, String)>,
}

impl Left {
    fn new(moved: &Moved<'_>) -> Self {
        let left = |(place, row): &&Placed| (*place, row.id, Arc::clone(&row.collection.tenant), row.cost());
        let taken = moved.taken.iter().map(left).collect();
        let refused = moved.refused.iter().map(|(row, error)| ((*row).clone(), error.clone()));
        Self { taken, refused: refused.collect() }
    }

    /// Takes them out. Refused rows go to the dead letters, where they still count as their tenant's bytes, so that
    /// they are bounded too. If retention has deleted a row since it was read, its place may have another row by now.
    /// That row stays.
    fn leave(&self, transaction: &Transaction<'_>) -> rusqlite::Result<Freed> {
        let mut delete = transaction.prepare_cached("DELETE FROM records WHERE seq = ?1 AND id = ?2")?;
        let mut freed = Freed::default();
        for (place, id, tenant, cost) in &self.taken {
            if delete.execute(params![place, id.bytes()])? > 0 {
                freed.add(tenant, 1, *cost);
            }
        }
        // The dead letters take the room that the other rows leave. Otherwise a full outbox would have to keep them
        // all.
        let mut put_aside = transaction.prepare_cached(
            "INSERT OR IGNORE INTO dead_letters (id, tenant, collection, data, at, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for ((place, Row { id, at, collection, data }), error) in &self.refused {
            if delete.execute(params![place, id.bytes()])? > 0 {
                freed.add(&collection.tenant, 1, 0);
                put_aside.execute(params![id.bytes(), &*collection.tenant, &*collection.name, data, at, error])?;
            }
        }
        let taken = self.taken.iter().map(|(_, id, ..)| *id);
        clock::note_left(transaction, taken.chain(self.refused.iter().map(|((_, row), _)| row.id)).max())?;
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

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
        let oldest = |connection: &_| sqlite::oldest(connection, &BTreeSet::new(), None).unwrap().rows;
        let read = oldest(&connection);
        // Meanwhile retention deletes the row, and another comes.
        connection.execute("DELETE FROM records", []).unwrap();
        sqlite::insert(&connection, &row("another")).unwrap();
        assert_eq!(oldest(&connection)[0].0, read[0].0, "the place is taken again");
        let transaction = connection.transaction().unwrap();
        let left = Left::new(&Moved { taken: read.iter().collect(), refused: Vec::new() });
        assert_eq!(left.leave(&transaction).unwrap().rows(), 0);
        transaction.commit().unwrap();
        assert_eq!(oldest(&connection)[0].1.data, b"another");
        // The last connection takes the write-ahead log with it.
        drop(connection);
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn the_greatest_id_is_known_after_its_row_has_left() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate::sqlite_up(&mut connection).unwrap();
        assert_eq!(clock::last_id(&connection).unwrap(), None);
        let collection = Collection::new(&"t".into(), "c").unwrap();
        let mut leave = |last_is_taken: bool| {
            let some = rows(&collection, ["first", "second", "last"].map(Into::into).into()).unwrap();
            let last = Some(some[2].id);
            sqlite::insert(&connection, &some).unwrap();
            assert_eq!(clock::last_id(&connection).unwrap(), last, "it is in the file");
            let read = sqlite::oldest(&connection, &BTreeSet::new(), None).unwrap().rows;
            let [.., second, last_read] = &read[..] else { panic!("{} rows", read.len()) };
            let (taken, refused) = if last_is_taken { (last_read, second) } else { (second, last_read) };
            let left = Left::new(&Moved { taken: vec![taken], refused: vec![(refused, "refused".into())] });
            let transaction = connection.transaction().unwrap();
            left.leave(&transaction).unwrap();
            transaction.commit().unwrap();
            assert_eq!(clock::last_id(&connection).unwrap(), last, "it has left");
        };
        leave(true);
        leave(false);
    }

    #[test]
    fn rows_that_go_apart_are_passed_and_places_that_are_used_again_are_not() {
        let file = std::env::temp_dir().join(format!("edge-relay-apart-{}", std::process::id()));
        let mut connection = sqlite::open(&file, 1 << 20).unwrap();
        migrate::sqlite_up(&mut connection).unwrap();
        let row = |tenant: &str| rows(&Collection::new(&tenant.into(), "c").unwrap(), vec![tenant.into()]).unwrap();
        let apart = BTreeSet::from(["bad".into()]);
        let oldest = |passed| {
            let Oldest { rows, passed, .. } = sqlite::oldest(&connection, &apart, passed).unwrap();
            (rows.into_iter().map(|(place, _)| place).collect::<Vec<_>>(), passed)
        };
        for tenant in ["bad", "bad", "good", "bad"] {
            sqlite::insert(&connection, &row(tenant)).unwrap();
        }
        let (places, passed) = oldest(None);
        assert_eq!((&places[..], passed.map(|(place, _)| place)), (&[3][..], Some(2)));
        connection.execute("DELETE FROM records WHERE seq = 3", []).unwrap();
        let (places, passed) = oldest(passed);
        assert_eq!((&places[..], passed.map(|(place, _)| place)), (&[][..], Some(4)));
        // All are gone, and their places have others.
        connection.execute("DELETE FROM records", []).unwrap();
        (0..5).for_each(|_| sqlite::insert(&connection, &row("good")).unwrap());
        assert_eq!(oldest(passed).0, [1, 2, 3, 4, 5]);
        drop(connection);
        std::fs::remove_file(file).unwrap();
    }
}
