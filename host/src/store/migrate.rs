//! Migrations: bring a database's tables to the form that this version of the host uses, and back.
//!
//! `migrations/` has them in pairs, up and down, and they are compiled in. `refinery` applies the up half and keeps the
//! history in the table `refinery_schema_history`. It cannot undo a migration, so that is done here. Only one host
//! migrates at a time: the file's lock sees to that with SQLite, a lock on the server with MySQL.

use std::time::Duration;

use mysql_async::{Conn, Pool, prelude::Queryable};
use refinery_core::{Migration, Runner};
use rusqlite::Connection;
use tokio::time::timeout;

/// The name of the server's lock, and the longest wait for another host that has it.
const LOCK: &str = "edge-relay migrations";
const LOCK_DEADLINE: Duration = Duration::from_secs(60);
/// Deadlines for a connection, for an answer, and for all missing migrations together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
const UP_DEADLINE: Duration = Duration::from_secs(600);

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

const SQLITE: [Pair; 2] = [pair!("sqlite", "V1__records"), pair!("sqlite", "V2__dead_letters")];
const MYSQL: [Pair; 1] = [pair!("mysql", "V1__records")];

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("its tables have version {found}, this program knows {known}: run a newer one, or migrate down with it")]
    Newer { found: usize, known: usize },
    #[error("another host has been migrating it for {} s", LOCK_DEADLINE.as_secs())]
    Locked,
    #[error("no {what} within {} s", deadline.as_secs())]
    Late { what: &'static str, deadline: Duration },
    #[error("{0}")]
    Refinery(#[from] refinery_core::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    MySql(#[from] mysql_async::Error),
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

async fn mysql_applied(pool: &Pool) -> Result<usize, MigrateError> {
    let late = |_| MigrateError::Late { what: "answer", deadline: QUERY_DEADLINE };
    timeout(QUERY_DEADLINE, mysql_version(pool)).await.map_err(late)?
}

async fn mysql_version(pool: &Pool) -> Result<usize, MigrateError> {
    let mut connection = connect(pool).await?;
    let exists = "SELECT count(*) FROM information_schema.tables \
        WHERE table_schema = DATABASE() AND table_name = 'refinery_schema_history'";
    let found = match connection.query_first::<usize, _>(exists).await? {
        None | Some(0) => None,
        _ => connection.query_first::<Option<usize>, _>("SELECT max(version) FROM refinery_schema_history").await?,
    };
    check(&MYSQL, found.flatten())
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
pub async fn mysql_up(pool: &Pool) -> Result<(), MigrateError> {
    let lock = lock(pool).await?;
    let applied = async {
        mysql_applied(pool).await?;
        runner(&MYSQL)?.run_async(&mut pool.clone()).await?;
        Ok(())
    };
    let late = |_| MigrateError::Late { what: "end of the migrations", deadline: UP_DEADLINE };
    let applied = timeout(UP_DEADLINE, applied).await.map_err(late)?;
    unlock(lock).await?;
    applied
}

pub async fn mysql_states(pool: &Pool) -> Result<Vec<MigrationState>, MigrateError> {
    Ok(states(&MYSQL, mysql_applied(pool).await?))
}

/// Undoes the last `count` migrations, the newest first. Returns their names.
pub async fn mysql_down(pool: &Pool, count: usize) -> Result<Vec<&'static str>, MigrateError> {
    let mut lock = lock(pool).await?;
    let undo = undo(mysql_states(pool).await?, &MYSQL, count);
    for (number, pair) in &undo {
        // MySQL commits after each change of a table. If this is cut off between the two, the next run undoes the
        // migration again.
        lock.query_drop(pair.down).await?;
        lock.exec_drop("DELETE FROM refinery_schema_history WHERE version = ?", (number,)).await?;
    }
    unlock(lock).await?;
    Ok(undo.into_iter().map(|(_, pair)| pair.name).collect())
}

fn undo(states: Vec<MigrationState>, pairs: &'static [Pair], count: usize) -> Vec<(usize, &'static Pair)> {
    let applied = states.iter().filter(|state| state.applied).count();
    (1..).zip(pairs).take(applied).collect::<Vec<_>>().into_iter().rev().take(count).collect()
}

async fn connect(pool: &Pool) -> Result<Conn, MigrateError> {
    let late = |_| MigrateError::Late { what: "connection", deadline: CONNECT_DEADLINE };
    Ok(timeout(CONNECT_DEADLINE, pool.get_conn()).await.map_err(late)??)
}

/// Takes the server's lock. The connection holds it, so the lock is free again however the connection ends.
async fn lock(pool: &Pool) -> Result<Conn, MigrateError> {
    let mut connection = connect(pool).await?;
    // Longer than the server itself waits.
    let deadline = LOCK_DEADLINE + QUERY_DEADLINE;
    let late = |_| MigrateError::Late { what: "answer", deadline };
    let taking = connection.exec_first("SELECT GET_LOCK(?, ?)", (LOCK, LOCK_DEADLINE.as_secs()));
    let taken: Option<Option<i64>> = timeout(deadline, taking).await.map_err(late)??;
    if taken.flatten() == Some(1) { Ok(connection) } else { Err(MigrateError::Locked) }
}

async fn unlock(mut connection: Conn) -> Result<(), MigrateError> {
    let late = |_| MigrateError::Late { what: "answer", deadline: QUERY_DEADLINE };
    timeout(QUERY_DEADLINE, connection.exec_drop("DO RELEASE_LOCK(?)", (LOCK,))).await.map_err(late)??;
    Ok(())
}
