//! The one thread that writes to the SQLite file.
//!
//! In come appends and changes, in order; out go answers, each after its commit is on disk. Appends that have queued while
//! the disk was busy are one transaction, so that the disk is waited for once for all of them.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use rusqlite::{Connection, ErrorCode, Transaction};
use tokio::sync::{Notify, oneshot};

use super::{ROW_OVERHEAD, StoreError, record::Row, sqlite};
use crate::metrics::StoreMetrics;

/// Rows of one transaction, unless one append has more.
const GROUP_ROWS: usize = 10_000;

type Done = oneshot::Sender<Result<(), StoreError>>;
/// What a change took from the records.
#[derive(Default)]
pub struct Freed {
    pub rows: usize,
    /// Of those whose bytes are free again: tenant and length.
    pub bytes: Vec<(String, usize)>,
}
type Change = Box<dyn FnOnce(&Transaction<'_>) -> rusqlite::Result<Freed> + Send>;

enum Order {
    Append { rows: Vec<Row>, quota: u64, done: Done },
    Change(Change, oneshot::Sender<Result<usize, StoreError>>),
    End,
}

/// The way to the thread.
pub struct Writer {
    orders: Sender<Order>,
    /// Told when rows have been appended.
    pub appended: Arc<Notify>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub fn start(connection: Connection, metrics: Arc<StoreMetrics>) -> io::Result<Self> {
        let (orders, queued) = channel();
        let appended = Arc::new(Notify::new());
        let (rows, used) = sqlite::usage(&connection).map_err(io::Error::other)?;
        metrics.waiting.set(i64::try_from(rows).unwrap_or(i64::MAX));
        let work = Work { connection, metrics, used, appended: Arc::clone(&appended) };
        let thread = thread::Builder::new().name("records".into()).spawn(move || work.run(&queued))?;
        Ok(Self { orders, appended, thread: Mutex::new(Some(thread)) })
    }

    /// Writes rows of one tenant, all or none; returns when they are on disk. `quota`: bytes the tenant may have here.
    pub async fn append(&self, rows: Vec<Row>, quota: u64) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Append { rows, quota, done });
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Changes what is there; returns how many rows are gone.
    pub async fn change(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Freed> + Send + 'static,
    ) -> Result<usize, StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Change(Box::new(change), done));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Finishes what is queued.
    pub fn end(&self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic in it has been printed, and whoever waited has been told.
            let _ = thread.join();
        }
    }

    fn order(&self, order: Order) {
        // Without the thread the answer's channel is closed, which says so.
        let _ = self.orders.send(order);
    }
}

fn gone() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

struct Work {
    connection: Connection,
    metrics: Arc<StoreMetrics>,
    /// Bytes of each tenant's rows.
    used: sqlite::Used,
    appended: Arc<Notify>,
}

impl Work {
    fn run(mut self, queued: &Receiver<Order>) {
        let mut held = None;
        while let Some(order) = held.take().or_else(|| queued.recv().ok()) {
            match order {
                Order::Append { rows, quota, done } => held = self.append((rows, quota, done), queued),
                Order::Change(change, done) => drop(done.send(self.change(change))),
                Order::End => return,
            }
        }
    }

    /// Writes an append and those behind it in one transaction; returns an order that was something else.
    fn append(&mut self, first: (Vec<Row>, u64, Done), queued: &Receiver<Order>) -> Option<Order> {
        let mut group: Vec<(Vec<Row>, Done)> = Vec::new();
        let (mut count, mut held, mut next) = (0, None, Some(first));
        while let Some((rows, quota, done)) = next.take() {
            if self.reserve(&rows, quota) {
                count += rows.len();
                group.push((rows, done));
            } else {
                drop(done.send(Err(StoreError::Full("the tenant's records have as many bytes as they may"))));
            }
            if count < GROUP_ROWS {
                match queued.try_recv() {
                    Ok(Order::Append { rows, quota, done }) => next = Some((rows, quota, done)),
                    Ok(other) => held = Some(other),
                    Err(_) => {}
                }
            }
        }
        let started = Instant::now();
        let written = self.write(&group);
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        match &written {
            Ok(()) => {
                self.metrics.appended.inc_by(count as u64);
                self.metrics.waiting.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
                self.appended.notify_one();
            }
            Err(error) => {
                tracing::error!(%error, "records cannot be written");
                group.iter().for_each(|(rows, _)| {
                    self.release(rows.iter().map(|row| (&*row.collection.tenant, row.data.len())))
                });
            }
        }
        for (_, done) in group {
            // Whoever has stopped waiting has its rows all the same.
            drop(done.send(written.as_ref().map(|_| ()).map_err(refusal)));
        }
        held
    }

    fn write(&mut self, group: &[(Vec<Row>, Done)]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for (rows, _) in group {
            sqlite::insert(&transaction, rows)?;
        }
        transaction.commit()
    }

    fn change(&mut self, change: Change) -> Result<usize, StoreError> {
        let changed = (|| {
            let transaction = self.connection.transaction()?;
            let freed = change(&transaction)?;
            transaction.commit()?;
            Ok(freed)
        })();
        let freed: Freed = changed.map_err(|error: rusqlite::Error| refusal(&error))?;
        self.release(freed.bytes.iter().map(|(tenant, length)| (tenant.as_str(), *length)));
        self.metrics.waiting.dec_by(i64::try_from(freed.rows).unwrap_or(i64::MAX));
        Ok(freed.rows)
    }

    /// Counts the rows' bytes, if their tenant may have them.
    fn reserve(&mut self, rows: &[Row], quota: u64) -> bool {
        let Some(first) = rows.first() else { return true };
        let bytes: u64 = rows.iter().map(|row| row.data.len() as u64 + ROW_OVERHEAD).sum();
        let used = self.used.entry(Arc::clone(&first.collection.tenant)).or_default();
        let fits = used.saturating_add(bytes) <= quota;
        *used += if fits { bytes } else { 0 };
        fits
    }

    fn release<'r>(&mut self, rows: impl Iterator<Item = (&'r str, usize)>) {
        for (tenant, length) in rows {
            if let Some(used) = self.used.get_mut(tenant) {
                *used = used.saturating_sub(length as u64 + ROW_OVERHEAD);
            }
        }
    }
}

/// What a failure is to whoever asked.
fn refusal(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full("the store, or its disk, is full"),
        _ => StoreError::Unavailable(format!("the store cannot be written: {error}")),
    }
}
