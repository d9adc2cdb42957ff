//! Retention: rows older than their collection keeps them are deleted, a few at a time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rusqlite::{OptionalExtension, Transaction, params};

use crate::{
    shutdown::Stop,
    store::{
        StoreError,
        mysql::RecordTable,
        reader::ReadConnections,
        record::{Collection, RecordId, Row},
        writer::{Freed, Writer},
    },
};

/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// Most rows deleted at once, so that appends do not wait for more.
const BATCH: usize = 1000;
/// Pause between two such batches.
const PAUSE: Duration = Duration::from_millis(50);

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
        loop {
            for keep in &*self.keep.load_full() {
                let deleted = tokio::select! {
                    deleted = self.apply(keep) => deleted,
                    () = stop.wait() => return,
                };
                if let Err(error) = deleted {
                    tracing::warn!(tenant.name = %keep.tenant, %error, "old records could not be deleted yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.wait() => return,
            }
        }
    }

    async fn apply(&self, keep: &Keep) -> Result<(), StoreError> {
        let oldest = SystemTime::now().checked_sub(keep.age).unwrap_or(UNIX_EPOCH);
        let millis = oldest.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let before = RecordId::first_of(u64::try_from(millis).unwrap_or(u64::MAX));
        // The collections are taken one by one: the oldest rows of one are found without looking at the others.
        let (mut from, to) = keep.names();
        while let Some(collection) = self.first_in_file(keep, &from, &to).await? {
            loop {
                let of = collection.clone();
                let deleted = self.writer.change(move |rows| delete(rows, &of, before)).await?;
                if deleted < BATCH {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            from = name_after(&collection);
        }
        let Some(mysql) = &self.mysql else { return Ok(()) };
        let (mut from, to) = keep.names();
        while let Some(collection) = mysql.collection(&keep.tenant, &from, &to).await? {
            while mysql.delete_before(&collection, before, BATCH).await? == BATCH as u64 {
                tokio::time::sleep(PAUSE).await;
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

fn delete(transaction: &Transaction<'_>, collection: &Collection, before: RecordId) -> rusqlite::Result<Freed> {
    let sql = "DELETE FROM records WHERE seq IN \
        (SELECT seq FROM records WHERE tenant = ?1 AND collection = ?2 AND id < ?3 LIMIT ?4) RETURNING length(data)";
    let mut statement = transaction.prepare_cached(sql)?;
    let parameters = params![&*collection.tenant, &*collection.name, before.bytes(), BATCH];
    let mut freed = Freed::default();
    for length in statement.query_map(parameters, |row| row.get::<_, usize>(0))? {
        freed.rows += 1;
        freed.add(&collection.tenant, Row::cost_of(length?, collection.tenant.len(), collection.name.len()));
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

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
