//! Migrations: bring a database's tables to the form that this version of the host uses, and back.
//!
//! `migrations/` has them in pairs, up and down, and they are compiled in. `refinery` applies the up half to SQLite and
//! keeps the history in the table `refinery_schema_history`. It cannot undo a migration, and with MySQL it takes more
//! connections and rights than an account need have, so those are done here, with the same history. Only one host
//! migrates at a time: the file's lock sees to that with SQLite, a lock on the server with MySQL, if that has such
//! locks. Where everything is up to date already, nothing is locked or changed.

use std::time::{Duration, Instant};

use mysql_async::{Conn, Error, prelude::Queryable};
use refinery_core::{Migration, Runner};
use rusqlite::Connection;

use crate::store::mysql::{Lent, explain};

/// The name of the server's lock, and the longest wait for another host that has it.
const LOCK: &str = "edge-relay migrations";
const LOCK_DEADLINE: Duration = Duration::from_secs(60);
/// Deadlines for an answer, and for a migration.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
const MIGRATION_DEADLINE: Duration = Duration::from_secs(600);
/// MySQL's error ER_NO_SUCH_TABLE.
const NO_SUCH_TABLE: u16 = 1146;
/// What MySQL says if a migration that was cut off, or that another host has done meanwhile, is done again: the table,
/// the column, the key or the row of the history is there; the column is gone.
const DONE_BEFORE: [u16; 5] = [1050, 1060, 1061, 1062, 1091];
/// How long ago a host has noted that it uses the tables, if it still runs. In seconds.
const USED: u64 = 60;

/// A migration, as its two files in `migrations/` have it.
struct Pair {
    /// `V`, its number, two underscores, then words.
    name: &'static str,
    up: &'static str,
    down: &'static str,
}

macro_rules! pair {
    ($folder:literal, $name:literal) => {
        Pair {
            name: $name,
            up: include_str!(concat!("../../../migrations/", $folder, "/", $name, ".up.sql")),
            down: include_str!(concat!("../../../migrations/", $folder, "/", $name, ".down.sql")),
        }
    };
}

const SQLITE: [Pair; 3] =
    [pair!("sqlite", "V1__records"), pair!("sqlite", "V2__dead_letters"), pair!("sqlite", "V3__clock")];
const MYSQL: [Pair; 4] = [
    pair!("mysql", "V1__records"),
    pair!("mysql", "V2__times"),
    pair!("mysql", "V3__record_times"),
    pair!("mysql", "V4__hosts"),
];

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("its tables have version {found}, this program knows {known}: run a newer one, or migrate down with it")]
    Newer { found: usize, known: usize },
    #[error("another host has been migrating it for {} s", LOCK_DEADLINE.as_secs())]
    Locked,
    #[error("its table records has a column \"at\" of type {kind} already: rename it")]
    OtherColumn { kind: String },
    #[error("the host {name} used it {seconds} s ago: stop all hosts of this database first")]
    Used { name: String, seconds: u64 },
    #[error("{0}")]
    Refinery(#[from] refinery_core::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{}", explain(.0))]
    MySql(#[from] Error),
}

/// A migration, and whether the database has it.
pub struct MigrationState {
    pub name: &'static str,
    pub applied: bool,
}

fn runner(pairs: &[Pair]) -> Result<Runner, MigrateError> {
    let migrations: Result<Vec<_>, _> = pairs.iter().map(|pair| Migration::unapplied(pair.name, pair.up)).collect();
    Ok(Runner::new(&migrations?))
}

/// Refuses a database that a newer version has migrated.
fn check(pairs: &[Pair], found: Option<usize>) -> Result<usize, MigrateError> {
    // Migrations are numbered from 1 on.
    let (found, known) = (found.unwrap_or(0), pairs.len());
    if found > known { Err(MigrateError::Newer { found, known }) } else { Ok(found) }
}

fn sqlite_applied(connection: &Connection) -> Result<usize, MigrateError> {
    let exists = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'refinery_schema_history'";
    let found = match connection.query_row(exists, [], |row| row.get::<_, usize>(0))? {
        0 => None,
        _ => connection.query_row("SELECT max(version) FROM refinery_schema_history", [], |row| row.get(0))?,
    };
    check(&SQLITE, found)
}

async fn mysql_applied(connection: &mut Lent<'_>) -> Result<usize, MigrateError> {
    let version = async |connection: &mut Conn| {
        connection.query_first::<Option<usize>, _>("SELECT max(version) FROM refinery_schema_history").await
    };
    let found = match run(connection, QUERY_DEADLINE, version).await {
        Err(Error::Server(server)) if server.code == NO_SUCH_TABLE => None,
        found => found?.flatten(),
    };
    check(&MYSQL, found)
}

fn states(pairs: &'static [Pair], applied: usize) -> Vec<MigrationState> {
    pairs.iter().enumerate().map(|(nth, pair)| MigrationState { name: pair.name, applied: nth < applied }).collect()
}

/// Applies the missing migrations.
pub fn sqlite_up(connection: &mut Connection) -> Result<(), MigrateError> {
    sqlite_applied(connection)?;
    runner(&SQLITE)?.run(connection)?;
    Ok(())
}

pub fn sqlite_states(connection: &Connection) -> Result<Vec<MigrationState>, MigrateError> {
    Ok(states(&SQLITE, sqlite_applied(connection)?))
}

/// Undoes the last `count` migrations, the newest first. Returns their names.
pub fn sqlite_down(connection: &mut Connection, count: usize) -> Result<Vec<&'static str>, MigrateError> {
    let undo = undo(sqlite_states(connection)?, &SQLITE, count);
    for (number, pair) in &undo {
        let transaction = connection.transaction()?;
        transaction.execute_batch(pair.down)?;
        transaction.execute("DELETE FROM refinery_schema_history WHERE version = ?1", [number])?;
        transaction.commit()?;
    }
    Ok(undo.into_iter().map(|(_, pair)| pair.name).collect())
}

/// Applies the missing migrations. If another host is doing so, waits for it first.
pub async fn mysql_up(connection: &mut Lent<'_>) -> Result<(), MigrateError> {
    if mysql_applied(connection).await? == MYSQL.len() {
        return Ok(());
    }
    let is_locked = lock(connection).await?;
    let applied = apply_missing(connection).await;
    let unlocked = unlock(connection, is_locked).await;
    applied?;
    unlocked
}

async fn apply_missing(connection: &mut Lent<'_>) -> Result<(), MigrateError> {
    let applied = mysql_applied(connection).await?;
    let history = "CREATE TABLE IF NOT EXISTS refinery_schema_history (version INT PRIMARY KEY, name VARCHAR(255), \
        applied_on VARCHAR(255), checksum VARCHAR(255))";
    change(connection, history).await?;
    for (number, pair) in (1_u32..).zip(&MYSQL).skip(applied) {
        let migration = Migration::unapplied(pair.name, pair.up)?;
        change(connection, pair.up).await?;
        if pair.name == "V2__times" {
            refuse_other_times(connection).await?;
        }
        let note = format!(
            "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) VALUES \
             ({number}, '{}', DATE_FORMAT(UTC_TIMESTAMP(), '%Y-%m-%dT%H:%i:%sZ'), '{}')",
            migration.name(),
            migration.checksum()
        );
        change(connection, &note).await?;
    }
    Ok(())
}

pub async fn mysql_states(connection: &mut Lent<'_>) -> Result<Vec<MigrationState>, MigrateError> {
    Ok(states(&MYSQL, mysql_applied(connection).await?))
}

/// Undoes the last `count` migrations, the newest first, unless a host uses the tables. Returns their names.
pub async fn mysql_down(connection: &mut Lent<'_>, count: usize) -> Result<Vec<&'static str>, MigrateError> {
    let is_locked = lock(connection).await?;
    let undone = undo_last(connection, count).await;
    let unlocked = unlock(connection, is_locked).await;
    let undone = undone?;
    unlocked.map(|()| undone)
}

async fn undo_last(connection: &mut Lent<'_>, count: usize) -> Result<Vec<&'static str>, MigrateError> {
    refuse_used(connection).await?;
    let undo = undo(mysql_states(connection).await?, &MYSQL, count);
    for (number, pair) in &undo {
        // MySQL commits after each change of a table. If this is cut off between the two, the next run undoes the
        // migration again.
        change(connection, pair.down).await?;
        change(connection, &format!("DELETE FROM refinery_schema_history WHERE version = {number}")).await?;
    }
    Ok(undo.into_iter().map(|(_, pair)| pair.name).collect())
}

/// Refuses a table that had a column `at` of another kind before.
async fn refuse_other_times(connection: &mut Lent<'_>) -> Result<(), MigrateError> {
    let kind = async |connection: &mut Conn| {
        let sql = "SELECT DATA_TYPE FROM information_schema.columns WHERE table_schema = DATABASE() AND \
            table_name = 'records' AND column_name = 'at'";
        connection.query_first::<String, _>(sql).await
    };
    match run(connection, QUERY_DEADLINE, kind).await? {
        Some(kind) if !kind.eq_ignore_ascii_case("bigint") => Err(MigrateError::OtherColumn { kind }),
        _ => Ok(()),
    }
}

/// Refuses if a host has lately noted that it uses the tables.
async fn refuse_used(connection: &mut Lent<'_>) -> Result<(), MigrateError> {
    let last = async |connection: &mut Conn| {
        let sql =
            "SELECT name, TIMESTAMPDIFF(SECOND, seen, CURRENT_TIMESTAMP) FROM relay_hosts ORDER BY seen DESC LIMIT 1";
        connection.query_first::<(String, i64), _>(sql).await
    };
    let last = match run(connection, QUERY_DEADLINE, last).await {
        Err(Error::Server(server)) if server.code == NO_SUCH_TABLE => None,
        last => last?,
    };
    match last.map(|(name, seconds)| (name, u64::try_from(seconds).unwrap_or_default())) {
        Some((name, seconds)) if seconds < USED => Err(MigrateError::Used { name, seconds }),
        _ => Ok(()),
    }
}

fn undo(states: Vec<MigrationState>, pairs: &'static [Pair], count: usize) -> Vec<(usize, &'static Pair)> {
    let applied = states.iter().filter(|state| state.applied).count();
    (1..).zip(pairs).take(applied).collect::<Vec<_>>().into_iter().rev().take(count).collect()
}

async fn run<T>(
    connection: &mut Lent<'_>,
    deadline: Duration,
    work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>,
) -> Result<T, Error> {
    connection.run(Instant::now() + deadline, work).await
}

/// Runs a statement that changes something, unless that is done already.
async fn change(connection: &mut Lent<'_>, sql: &str) -> Result<(), Error> {
    match run(connection, MIGRATION_DEADLINE, async |connection| connection.query_drop(sql).await).await {
        Err(Error::Server(server)) if DONE_BEFORE.contains(&server.code) => Ok(()),
        changed => changed,
    }
}

/// Takes the server's lock. The connection holds it, so the lock is free again however the connection ends. False: the
/// server has no such locks, as clusters have not. Then two hosts may migrate at once, which does no harm: each step
/// may be done again.
async fn lock(connection: &mut Lent<'_>) -> Result<bool, MigrateError> {
    // Longer than the server itself waits.
    let deadline = LOCK_DEADLINE + QUERY_DEADLINE;
    let take = async |connection: &mut Conn| {
        connection.exec_first::<Option<i64>, _, _>("SELECT GET_LOCK(?, ?)", (LOCK, LOCK_DEADLINE.as_secs())).await
    };
    match run(connection, deadline, take).await {
        Ok(taken) if taken.flatten() == Some(1) => Ok(true),
        Ok(_) => Err(MigrateError::Locked),
        Err(error @ Error::Server(_)) => {
            tracing::warn!(error = explain(&error), "the server gives no lock for migrations; they are done without");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

async fn unlock(connection: &mut Lent<'_>, is_locked: bool) -> Result<(), MigrateError> {
    if is_locked {
        let release = async |connection: &mut Conn| connection.exec_drop("DO RELEASE_LOCK(?)", (LOCK,)).await;
        run(connection, QUERY_DEADLINE, release).await?;
    }
    Ok(())
}
