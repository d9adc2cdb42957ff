//! Records: rows that components append and that outlive the host.
//!
//! All tenants' appends come here, and each is answered once its rows are on disk. One thread writes them to a SQLite
//! file, with everything that has queued in one transaction (`writer`). Without MySQL that file is the store. With
//! MySQL the file is an outbox: `drain` moves its rows there through any outage, each exactly once since a row's id is
//! its key (docs/RECORDS.md). A read sees both. The store has a runtime of its own: none of its work runs on a thread of guests, shards
//! or listeners.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use config::StoreConfig;
use futures_util::FutureExt;
use tokio::{
    runtime::{Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout_at,
};

use crate::{metrics::Metrics, shutdown, shutdown::Trigger};

pub mod clock;
mod drain;
pub mod migrate;
mod mysql;
mod presence;
mod reader;
mod record;
mod refusals;
mod retention;
mod sqlite;
mod writer;

use crate::store::{drain::Drain, reader::ReadConnections, retention::Retention, writer::Writer};
pub use crate::store::{
    mysql::{BadUrl, RecordTable, explain, parse_url as parse_mysql_url},
    record::{Collection, Part, Query, Record, RecordId, Row, now, rows},
    retention::Keep,
    sqlite::FileLock,
};

/// Most bytes of rows that wait to be written. Beyond that, appends wait for room.
const QUEUE_BYTES: usize = 64 << 20;
/// A tenant may have a quarter of them.
const TENANT_PART: usize = 4;
/// Bytes of an append that does not wait behind large ones, and the room for such.
const SMALL_APPEND: u64 = 256 << 10;
const SMALL_QUEUE_BYTES: usize = 8 << 20;
/// Reads of a tenant at once.
const TENANT_READS: usize = reader::MAX_READERS / 2;

/// Why an append or a read failed. A failed append has written nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0}")]
    Full(&'static str),
    #[error("the tenant's records have as many bytes as they may")]
    Quota,
    #[error("{0}")]
    Unavailable(String),
}

impl StoreError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Full(_) | Self::Quota => "full",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("another host uses it: give each its own store.file")]
    InUse,
    #[error(transparent)]
    Url(#[from] BadUrl),
    #[error("{0}")]
    Migrate(#[from] migrate::MigrateError),
}

/// A store that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("the store {path} cannot be used: {error}")]
pub struct Unusable {
    path: String,
    error: OpenError,
}

/// Opens the file alone, to migrate it.
pub fn open_file(config: &StoreConfig) -> Result<rusqlite::Connection, OpenError> {
    Ok(sqlite::open(&config.file, config.size)?)
}

/// All records of the host.
pub struct Store {
    writer: Arc<Writer>,
    runtime: Handle,
    /// Bytes that may wait for the writer, in large appends and in small ones.
    room: Arc<Semaphore>,
    small_room: Arc<Semaphore>,
    readers: Arc<ReadConnections>,
    mysql: Option<Arc<RecordTable>>,
    keep: Arc<ArcSwap<Vec<Keep>>>,
    metrics: Arc<Metrics>,
}

/// A tenant's room for rows that wait to be written, a quarter of all, and for reads, a half of all.
pub struct RecordsRoom {
    appends: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl Default for RecordsRoom {
    fn default() -> Self {
        let appends = Arc::new(Semaphore::new(QUEUE_BYTES / TENANT_PART));
        Self { appends, reads: Arc::new(Semaphore::new(TENANT_READS)) }
    }
}

/// Waits for room for this many bytes. One append may be larger than all there is, and then has it alone.
async fn take(room: &Arc<Semaphore>, bytes: u64, most: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes.min(most as u64)).unwrap_or(u32::MAX);
    Arc::clone(room).acquire_many_owned(bytes).await.ok()
}

/// Everything that runs for a store.
pub struct StoreTasks {
    runtime: Runtime,
    tasks: JoinSet<()>,
    stop: Trigger,
    writer: Arc<Writer>,
    _lock: FileLock,
}

impl Store {
    /// Opens the file, migrates it and starts the drain. Creates the file's folder if there is none. MySQL need not be
    /// there. If it is, and its tables are newer than this program, that is an error.
    pub fn open(
        config: StoreConfig,
        keep: Vec<Keep>,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, StoreTasks), Unusable> {
        let path = config.file.display().to_string();
        Self::start(config, keep, metrics).map_err(|error| Unusable { path, error })
    }

    fn start(
        config: StoreConfig,
        keep: Vec<Keep>,
        metrics: Arc<Metrics>,
    ) -> Result<(Arc<Self>, StoreTasks), OpenError> {
        if let Some(folder) = config.file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let runtime = runtime()?;
        let lock = FileLock::take(&config.file)?.ok_or(OpenError::InUse)?;
        let mut connection = open_file(&config)?;
        migrate::sqlite_up(&mut connection)?;
        if let Some(last) = clock::last_id(&connection)? {
            last.go_on_after();
            clock::begin(&connection, last)?;
        }
        let writer = Arc::new(Writer::start(connection, Arc::clone(&metrics))?);
        let mysql = record_table(&config, &runtime)?;
        let readers = Arc::new(ReadConnections::new(config.file.clone(), runtime.handle().clone()));
        let (trigger, stop) = shutdown::stop();
        let mut tasks = JoinSet::new();
        if let Some(mysql) = &mysql {
            let (mysql, writer, readers) = (Arc::clone(mysql), Arc::clone(&writer), Arc::clone(&readers));
            let drain = Drain::new(mysql, writer, readers, Arc::clone(&metrics));
            tasks.spawn_on(vital("the drain", drain.run(stop.clone())), runtime.handle());
        }
        if let Some(mysql) = mysql.clone().filter(|_| config.mysql_file.is_some()) {
            let _entered = runtime.enter();
            let mut hangup = signal(SignalKind::hangup())?;
            let mut stop = stop.clone();
            tasks.spawn(async move {
                loop {
                    tokio::select! {
                        _ = hangup.recv() => mysql.read_url_again(),
                        () = stop.wait() => return,
                    }
                }
            });
        }
        let keep = Arc::new(ArcSwap::from_pointee(keep));
        let retention = Retention {
            keep: Arc::clone(&keep),
            writer: Arc::clone(&writer),
            readers: Arc::clone(&readers),
            mysql: mysql.clone(),
        };
        tasks.spawn_on(vital("retention", retention.run(stop)), runtime.handle());
        let store = Self {
            writer: Arc::clone(&writer),
            runtime: runtime.handle().clone(),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            small_room: Arc::new(Semaphore::new(SMALL_QUEUE_BYTES)),
            readers,
            mysql,
            keep,
            metrics,
        };
        Ok((Arc::new(store), StoreTasks { runtime, tasks, stop: trigger, writer, _lock: lock }))
    }

    /// Appends rows of one tenant, all or none. They are on disk when this returns. `quota` is the most bytes that the
    /// tenant may have in the file, and `room` what it has of the room for rows that wait.
    pub async fn append(&self, rows: Vec<Row>, quota: u64, room: &RecordsRoom) -> Result<(), StoreError> {
        let count = rows.len();
        let appended = match self.writer.reserve(rows, quota) {
            Some(rows) => {
                // Its own first: who waits for it keeps none of the others' room. The semaphores are never closed.
                let own = take(&room.appends, rows.bytes, QUEUE_BYTES / TENANT_PART).await;
                let all = match rows.bytes <= SMALL_APPEND {
                    true => take(&self.small_room, rows.bytes, SMALL_QUEUE_BYTES).await,
                    false => take(&self.room, rows.bytes, QUEUE_BYTES).await,
                };
                match own.zip(all) {
                    Some((own, all)) => self.writer.append(rows, [own, all]).await,
                    None => Err(StoreError::Unavailable("the store is closed".into())),
                }
            }
            None => Err(StoreError::Quota),
        };
        if let Err(error) = &appended {
            self.metrics.records_refused(error.reason(), count);
        }
        appended
    }

    /// Changes how long records are kept, from now on.
    pub fn set_keep(&self, keep: Vec<Keep>) {
        self.keep.store(Arc::new(keep));
    }

    /// How many rows wait for MySQL, and for how many seconds the oldest has waited. `None`: there is no MySQL.
    pub fn backlog(&self) -> Option<(i64, f64)> {
        self.mysql.as_ref().map(|_| (self.metrics.records_waiting.get(), self.metrics.outbox_oldest_seconds.get()))
    }

    /// Reads rows that were appended, drained or not, but for dead letters.
    pub async fn read(
        &self,
        collection: &Collection,
        query: Query,
        room: &RecordsRoom,
        deadline: Instant,
    ) -> Result<Part, StoreError> {
        let reading = async {
            loop {
                let part = self.parts(collection, &query, room, deadline).await?;
                // If retention deletes all of it while it is read, there may be more behind it.
                if !part.records.is_empty() || part.cut_at.is_none() {
                    return Ok(part);
                }
            }
        };
        let late =
            |_| Err(StoreError::Unavailable("the database has not answered in the time that the call has".into()));
        timeout_at(deadline.into(), reading).await.unwrap_or_else(late)
    }

    async fn parts(
        &self,
        collection: &Collection,
        query: &Query,
        room: &RecordsRoom,
        deadline: Instant,
    ) -> Result<Part, StoreError> {
        let (of, asked) = (collection.clone(), query.clone());
        // The semaphore is never closed.
        let reads = Arc::clone(&room.reads).acquire_owned().await.ok();
        // The outbox comes first: a row that leaves it now is in MySQL already.
        let read = move |connection: &_| {
            // The place is taken as long as the thread reads, also when nobody waits for it any more.
            sqlite::select(connection, &of, &asked).map(|part| (part, reads))
        };
        let (here, reads) = self.readers.read(read).await?;
        match &self.mysql {
            None => Ok(here),
            Some(mysql) => {
                // This runs on the store's own runtime: the guests' runtime has no sockets.
                let (mysql, of, asked) = (Arc::clone(mysql), collection.clone(), query.clone());
                let there = self.runtime.spawn(async move {
                    let _reads = reads;
                    mysql.select(&of, &asked, deadline).await
                });
                let there = there.await;
                let there = there.map_err(|_| StoreError::Unavailable("the store is closed".into()))?;
                Ok(query.merge(here, there?))
            }
        }
    }
}

impl StoreTasks {
    /// Ends the drain and writes what is queued. Rows in the outbox stay there for the next start.
    pub async fn shutdown(mut self, timeout: Duration) {
        self.stop.pull();
        let deadline = Instant::now() + timeout;
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        // The other half is for what is yet to be written.
        if tokio::time::timeout(timeout / 2, finished).await.is_err() {
            tracing::warn!("the drain was cut off at shutdown");
        }
        self.tasks.abort_all();
        if tokio::time::timeout_at(deadline.into(), self.writer.end()).await.is_err() {
            tracing::error!(
                "the store's disk does not answer: rows that waited for it are lost, and none was acknowledged"
            );
        }
        self.runtime.shutdown_background();
    }
}

/// Runs a task that the host cannot go on without. If it panics, the process ends, and its supervisor restarts it.
async fn vital(what: &str, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!("{what} panicked; the process ends");
        std::process::exit(1);
    }
}

/// The store's own runtime.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(reader::MAX_READERS)
        .thread_name("store")
        .enable_all()
        .build()
}

/// The table of records in MySQL, which need not answer yet.
fn record_table(config: &StoreConfig, runtime: &Runtime) -> Result<Option<Arc<RecordTable>>, OpenError> {
    let _entered = runtime.enter();
    let Some(mysql) = RecordTable::of(config)? else { return Ok(None) };
    runtime.block_on(refuse_newer(&mysql))?;
    Ok(Some(Arc::new(mysql)))
}

/// Refuses a database that a newer version has migrated: it must not be written to. One that does not answer may come
/// back.
async fn refuse_newer(mysql: &RecordTable) -> Result<(), OpenError> {
    let states = async { migrate::mysql_states(&mut mysql.connect().await?).await };
    match states.await {
        Err(error @ migrate::MigrateError::Newer { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "MySQL cannot be asked: records wait in the outbox");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}
