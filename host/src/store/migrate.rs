//! Migrations: a database's tables, brought to what this version of the host uses, and back.
//!
//! `migrations/` has them in pairs, up and down, and they are compiled in. `refinery` applies those up and keeps the
//! history in the table `refinery_schema_history`; it does not undo, so that is done here. One host at a time: with SQLite
//! the file's lock sees to that, with MySQL a lock of the server's.

use std::time::Duration;

use mysql_async::{Conn, Pool, prelude::Queryable};
use refinery_core::{Migration, Runner};
use rusqlite::Connection;
use tokio::time::timeout;

/// The server's lock, and how long another host may take.
const LOCK: &str = "edge-relay migrations";
const LOCK_DEADLINE: Duration = Duration::from_secs(60);
/// For a connection, for an answer, and for all that is missing.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
const UP_DEADLINE: Duration = Duration::from_secs(600);

/// A migration as it lies in `migrations/`.
struct Pair {
    /// `V`, its number, two underscores, its name.
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
    #[error(
        "its tables are of version {found}, this program knows none after {known}: run a newer one, or migrate down with it"
    )]
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
    // They are numbered from 1 on.
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

/// Applies what is missing.
pub fn sqlite_up(connection: &mut Connection) -> Result<(), MigrateError> {
    sqlite_applied(connection)?;
    runner(&SQLITE)?.run(connection)?;
    Ok(())
}

pub fn sqlite_states(connection: &Connection) -> Result<Vec<MigrationState>, MigrateError> {
    Ok(states(&SQLITE, sqlite_applied(connection)?))
}

/// Undoes the last `count`, the newest first; returns their names.
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

/// Applies what is missing, unless another host is at it: then waits for that.
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

/// Undoes the last `count`, the newest first; returns their names.
pub async fn mysql_down(pool: &Pool, count: usize) -> Result<Vec<&'static str>, MigrateError> {
    let mut lock = lock(pool).await?;
    let undo = undo(mysql_states(pool).await?, &MYSQL, count);
    for (number, pair) in &undo {
        // MySQL commits at each change of a table: a pair that was cut off in between is undone again.
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

/// Held by the connection: it is given back when that ends, however it does.
async fn lock(pool: &Pool) -> Result<Conn, MigrateError> {
    let mut connection = connect(pool).await?;
    // The server's own time first.
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
