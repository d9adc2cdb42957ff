//! Retention: rows older than their collection keeps them are deleted, a few at a time.
//!
//! Nothing is deleted by a clock that may be wrong: one that is more than a day past what the store has last seen, or
//! that MySQL's does not agree with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rusqlite::{OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use crate::{
    shutdown::Stop,
    store::{
        StoreError, clock,
        clock::Clock,
        mysql::RecordTable,
        reader::ReadConnections,
        record::{Collection, RecordId, Row, now},
        writer::{Freed, Writer},
    },
};

/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// Most rows deleted at once, so that appends do not wait for more.
const BATCH: usize = 1000;
/// Pause after such a batch: at most 20,000 rows a second are deleted.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked whether somebody has confirmed the clock.
const LOOK: Duration = Duration::from_secs(1);
/// How far ahead of MySQL's clock the host's may be, in milliseconds.
const AHEAD: u64 = 5 * 60 * 1000;

/// How long the rows of a tenant's collections are kept.
#[derive(Clone, Debug)]
pub struct Keep {
    pub tenant: Arc<str>,
    /// A collection's name, or a prefix and `*`.
    pub pattern: String,
    pub age: Duration,
}

impl Keep {
    /// The names it covers, from the first to before the second.
    fn names(&self) -> (String, String) {
        match self.pattern.strip_suffix('*') {
            Some(prefix) => (prefix.to_owned(), format!("{prefix}{}", char::MAX)),
            // No name has a control character, so only this name is between the two.
            None => (self.pattern.clone(), format!("{}\0", self.pattern)),
        }
    }
}

pub struct Retention {
    /// The rules of all tenants. They may be replaced at any time.
    pub keep: Arc<ArcSwap<Vec<Keep>>>,
    pub writer: Arc<Writer>,
    pub readers: Arc<ReadConnections>,
    pub mysql: Option<Arc<RecordTable>>,
}

impl Retention {
    pub async fn run(self, mut stop: Stop) {
        let mut last: Option<Instant> = None;
        loop {
            let ran = last.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed());
            let round = tokio::select! {
                round = self.round(ran) => round,
                () = stop.wait() => return,
            };
            if let Err(error) = round {
                tracing::warn!(%error, "old records could not be deleted yet");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.confirmed() => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Deletes what is old, if the clock is trusted. `ran`: how long this host has run since the last round.
    async fn round(&self, ran: Duration) -> Result<(), StoreError> {
        let (now, ran) = (now(), u64::try_from(ran.as_millis()).unwrap_or(u64::MAX));
        let (sender, receiver) = oneshot::channel();
        let change = move |transaction: &Transaction<'_>| {
            // Somebody may confirm the clock at any time.
            let before = clock::read(transaction)?;
            let after = before.at(now, ran);
            clock::write(transaction, after)?;
            let _ = sender.send((before, after));
            Ok(Freed::default())
        };
        self.writer.change(change).await?;
        let (before, after) = receiver.await.unwrap_or_default();
        if after.doubt > before.doubt || after.doubt > 0 && ran == 0 {
            let days_ahead = now.saturating_sub(before.seen.unwrap_or(now)) / clock::DAY;
            let hours = after.doubt.div_ceil(60 * 60 * 1000);
            tracing::warn!(
                days_ahead,
                hours,
                "the clock is, or was, more than a day past the time when this store was last used; old records are kept \
                 until the host has run for that many hours, or `edge-relay retention --confirm` says that the clock is right"
            );
        }
        let keep = self.keep.load_full();
        if after.doubt > 0 || keep.is_empty() {
            return Ok(());
        }
        if let Some(mysql) = &self.mysql {
            let theirs = mysql.now().await?;
            if now > theirs.saturating_add(AHEAD) {
                let seconds_ahead = (now - theirs) / 1000;
                return Err(StoreError::Unavailable(format!(
                    "this host's clock is {seconds_ahead} s ahead of MySQL's; set the one that is wrong"
                )));
            }
        }
        for keep in &*keep {
            let mut deleted = 0;
            let applied = self.apply(keep, now, &mut deleted).await;
            if deleted > 0 {
                let (tenant, collection) = (&*keep.tenant, &*keep.pattern);
                tracing::info!(
                    tenant.name = tenant,
                    collection,
                    deleted,
                    keep_s = keep.age.as_secs(),
                    "old records deleted"
                );
            }
            if let Err(error) = applied {
                tracing::warn!(tenant.name = %keep.tenant, %error, "old records could not be deleted yet");
            }
        }
        Ok(())
    }

    /// Returns when somebody has confirmed the clock.
    async fn confirmed(&self) {
        let doubt = async || self.readers.read(clock::read).await.map_or(0, |Clock { doubt, .. }| doubt);
        if doubt().await == 0 {
            return std::future::pending().await;
        }
        while doubt().await > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Deletes what one rule says. Counts the rows.
    async fn apply(&self, keep: &Keep, now: u64, count: &mut u64) -> Result<(), StoreError> {
        let before = now.saturating_sub(u64::try_from(keep.age.as_millis()).unwrap_or(u64::MAX));
        // The collections are taken one by one: the oldest rows of one are found without looking at the others.
        let (mut from, to) = keep.names();
        while let Some(collection) = self.first_in_file(keep, &from, &to).await? {
            loop {
                let of = collection.clone();
                let deleted = self.writer.change(move |rows| delete(rows, &of, before)).await?;
                *count += deleted as u64;
                if deleted > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                if deleted < BATCH {
                    break;
                }
            }
            from = name_after(&collection);
        }
        let Some(mysql) = &self.mysql else { return Ok(()) };
        let (mut from, to) = keep.names();
        while let Some(collection) = mysql.collection(&keep.tenant, &from, &to).await? {
            loop {
                let deleted = mysql.delete_before(&collection, before, BATCH).await?;
                *count += deleted;
                if deleted > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                if deleted < BATCH as u64 {
                    break;
                }
            }
            from = name_after(&collection);
        }
        Ok(())
    }

    /// The first collection in the file whose name is at least `from` and below `to`.
    async fn first_in_file(&self, keep: &Keep, from: &str, to: &str) -> Result<Option<Collection>, StoreError> {
        let (tenant, from, to) = (Arc::clone(&keep.tenant), from.to_owned(), to.to_owned());
        let name = self.readers.read(move |connection| {
            let sql = "SELECT collection FROM records WHERE tenant = ?1 AND collection >= ?2 AND collection < ?3 \
                ORDER BY collection LIMIT 1";
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_row(params![&*tenant, from, to], |row| row.get::<_, String>(0)).optional()
        });
        Ok(name.await?.map(|name| Collection { tenant: Arc::clone(&keep.tenant), name: name.into() }))
    }
}

/// The smallest name after a collection's.
fn name_after(collection: &Collection) -> String {
    format!("{}\0", collection.name)
}

/// Deletes rows that were appended before a time.
fn delete(transaction: &Transaction<'_>, collection: &Collection, before: u64) -> rusqlite::Result<Freed> {
    let old = "SELECT seq FROM records WHERE tenant = ?1 AND collection = ?2";
    let sql = format!(
        "DELETE FROM records WHERE seq IN (SELECT * FROM ({old} AND id < ?3 AND at IS NULL LIMIT ?5) UNION ALL \
         SELECT * FROM ({old} AND at < ?4 LIMIT ?5) LIMIT ?5) RETURNING id, length(data)"
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let first = RecordId::first_of(before);
    let parameters = params![&*collection.tenant, &*collection.name, first.bytes(), before, BATCH];
    let (mut freed, mut last) = (Freed::default(), None);
    for row in statement.query_map(parameters, |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, usize>(1)?)))? {
        let (id, length) = row?;
        last = last.max(Some(RecordId::from(id)));
        freed.add(&collection.tenant, 1, Row::cost_of(length, collection.tenant.len(), collection.name.len()));
    }
    clock::note_left(transaction, last)?;
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::{migrate, rows, sqlite};

    #[test]
    fn the_greatest_id_is_known_after_its_row_was_deleted() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate::sqlite_up(&mut connection).unwrap();
        let collection = Collection::new(&"t".into(), "c").unwrap();
        let some = rows(&collection, vec!["old".into(), "newer".into()]).unwrap();
        sqlite::insert(&connection, &some).unwrap();
        let transaction = connection.transaction().unwrap();
        assert_eq!(delete(&transaction, &collection, now() + clock::DAY).unwrap().rows(), 2);
        transaction.commit().unwrap();
        assert_eq!(clock::last_id(&connection).unwrap(), Some(some[1].id));
    }

    #[test]
    fn a_pattern_is_one_name_or_all_with_a_prefix() {
        let fits = |pattern: &str, name: &str| {
            let (from, to) = Keep { tenant: "t".into(), pattern: pattern.into(), age: EVERY }.names();
            *name >= *from && *name < *to
        };
        assert!(fits("a", "a") && !fits("a", "ab") && !fits("a", "A") && !fits("a", "b"));
        assert!(fits("a*", "a") && fits("a*", "ab") && fits("a*", "aé\u{10FFFE}") && !fits("a*", "b"));
        assert!(fits("*", "anything"));
    }
}
