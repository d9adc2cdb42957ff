//! `edge-relay migrate`: the tables of the store.

use std::{error::Error, fs, path::PathBuf};

use clap::{Args, ValueEnum};
use config::{self, StoreConfig};

use crate::{
    command::{Failure, announce, io_runtime},
    store,
    store::{migrate, migrate::MigrationState},
    telemetry,
};

/// Shows or changes the version of the store's tables.
///
/// `serve` brings the tables up to date by itself. Use this to look first, or to go back to an older version of the
/// program: migrate down with the newer version, then install the older one. With MySQL there are two databases: the
/// outbox in its file, and MySQL itself. No host may be running on the same file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay migrate --config relay.toml --status
  edge-relay migrate --config relay.toml --up
  edge-relay migrate --config relay.toml --down 1 --database mysql")]
pub struct Migrate {
    /// The host's configuration, which names the store.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    what: What,
    /// Only this one of the two databases.
    #[arg(long, value_enum)]
    database: Option<Database>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Lists the migrations, and tells which are applied.
    #[arg(long)]
    status: bool,
    /// Applies the missing migrations.
    #[arg(long)]
    up: bool,
    /// Undoes the last N migrations; all data in their tables is lost.
    #[arg(long, value_name = "N")]
    down: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Database {
    /// The SQLite file: the store, or the outbox.
    Sqlite,
    Mysql,
}

impl Migrate {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("warn").map_err(Failure::usage)?;
        let config = config::load_host(&self.config, store::parse_mysql_url)
            .map_err(|problems| Failure::usage(problems.to_string()))?;
        let Some(store) = config.store else { return Err(Failure::usage("the configuration has no store")) };
        let wanted = |database| self.database.is_none_or(|only| only == database);
        if self.database == Some(Database::Mysql) && store.mysql.is_none() {
            return Err(Failure::usage("store.url names no MySQL"));
        }
        if self.what.down.is_some() && store.mysql.is_some() && self.database.is_none() {
            return Err(Failure::usage(
                "there are two databases: choose one with --database sqlite or --database mysql",
            ));
        }
        if wanted(Database::Sqlite) {
            let path = store.file.display().to_string();
            announce(&format!("sqlite {path}"))?;
            self.sqlite(&store).map_err(|error| Failure::failed(format!("{path}: {error}")))?;
        }
        if wanted(Database::Mysql) && store.mysql.is_some() {
            announce("mysql")?;
            io_runtime()?.block_on(self.mysql(&store)).map_err(|error| Failure::failed(error.to_string()))?;
        }
        Ok(())
    }

    fn sqlite(&self, store: &StoreConfig) -> Result<(), Box<dyn Error>> {
        if let Some(folder) = store.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let _lock = crate::store::FileLock::take(&store.file)?.ok_or("a host is using it: stop the host first")?;
        let mut file = crate::store::open_file(store)?;
        match self.what.down {
            Some(count) => undone(&migrate::sqlite_down(&mut file, count)?),
            None => {
                if self.what.up {
                    migrate::sqlite_up(&mut file)?;
                }
                show(&migrate::sqlite_states(&file)?)
            }
        }
    }

    async fn mysql(&self, store: &StoreConfig) -> Result<(), Box<dyn Error>> {
        let mysql = store::RecordTable::of(store)?.ok_or("it is not configured")?;
        let mut connection = mysql.connect().await.map_err(|error| store::explain(&error))?;
        match self.what.down {
            Some(count) => undone(&migrate::mysql_down(&mut connection, count).await?),
            None => {
                if self.what.up {
                    migrate::mysql_up(&mut connection).await?;
                }
                show(&migrate::mysql_states(&mut connection).await?)
            }
        }
    }
}

fn show(states: &[MigrationState]) -> Result<(), Box<dyn Error>> {
    for MigrationState { name, applied } in states {
        let state = if *applied { "applied" } else { "missing" };
        announce(&format!("  {state}  {name}")).map_err(into_error)?;
    }
    Ok(())
}

fn undone(names: &[&'static str]) -> Result<(), Box<dyn Error>> {
    for name in names {
        announce(&format!("  undone   {name}")).map_err(into_error)?;
    }
    if names.is_empty() { announce("  nothing to undo").map_err(into_error) } else { Ok(()) }
}

fn into_error(failure: Failure) -> Box<dyn Error> {
    let (Failure::Usage(error) | Failure::Failed(error) | Failure::Coded(_, error)) = failure;
    error
}
