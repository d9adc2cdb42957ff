//! The one thread that writes to the SQLite file, and refuses rows over a tenant's quota.
//!
//! It takes appends and changes in order, and answers each after its commit is on disk. Appends that queue while the
//! disk is busy become one transaction, so that all of them wait for the disk once.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use rusqlite::{Connection, ErrorCode, Transaction};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::{
    metrics::Metrics,
    store::{StoreError, record::Row, sqlite},
};

/// Most rows of one transaction, unless one append has more.
const GROUP_ROWS: usize = 10_000;

type Done = oneshot::Sender<Result<(), StoreError>>;
type RowChange = Box<dyn FnOnce(&Transaction<'_>) -> rusqlite::Result<Freed> + Send>;

/// What a change removed from the records.
#[derive(Default)]
pub struct Freed {
    pub rows: usize,
    /// The bytes that are free again, by tenant.
    pub bytes: HashMap<Arc<str>, u64>,
}

impl Freed {
    pub fn add(&mut self, tenant: &Arc<str>, bytes: u64) {
        *self.bytes.entry(Arc::clone(tenant)).or_default() += bytes;
    }
}

/// Rows of one tenant that are to be written, all or none.
struct Append {
    rows: Vec<Row>,
    /// Bytes the tenant may have in the file.
    quota: u64,
    done: Done,
    /// Its share of the room for rows that wait. It is given back once the rows are written, even if the caller waits
    /// no more.
    _room: OwnedSemaphorePermit,
}

impl Append {
    fn bytes(&self) -> u64 {
        self.rows.iter().map(Row::cost).sum()
    }
}

enum Order {
    Append(Append),
    RowChange(RowChange, oneshot::Sender<Result<usize, StoreError>>),
    End(oneshot::Sender<()>),
}

/// The handle to the thread.
pub struct Writer {
    orders: Sender<Order>,
    /// Notified when rows have been appended.
    pub appended: Arc<Notify>,
}

impl Writer {
    pub fn start(connection: Connection, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (orders, queued) = channel();
        let appended = Arc::new(Notify::new());
        let (rows, used) = sqlite::usage(&connection).map_err(io::Error::other)?;
        metrics.records_waiting.set(i64::try_from(rows).unwrap_or(i64::MAX));
        let work = Work { connection, metrics, used, appended: Arc::clone(&appended) };
        // [`Writer::end`] ends the thread. It is not joined, since a disk that does not answer would make that endless.
        thread::Builder::new().name("records".into()).spawn(move || work.run(&queued))?;
        Ok(Self { orders, appended })
    }

    /// Writes rows of one tenant, all or none. Returns when they are on disk. `quota`: bytes the tenant may have here.
    pub async fn append(&self, rows: Vec<Row>, quota: u64, room: OwnedSemaphorePermit) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Append(Append { rows, quota, done, _room: room }));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Runs a change in a transaction. Returns how many rows it removed.
    pub async fn change(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Freed> + Send + 'static,
    ) -> Result<usize, StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::RowChange(Box::new(change), done));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Writes what is queued, and closes the file. The caller must set a deadline, as the disk may not answer.
    pub async fn end(&self) {
        let (done, ended) = oneshot::channel();
        self.order(Order::End(done));
        // A thread that panicked has ended too. The panic was printed, and every caller that waited has its error.
        let _ = ended.await;
    }

    fn order(&self, order: Order) {
        // Without the thread the answer's channel is closed, and the caller sees that.
        let _ = self.orders.send(order);
    }
}

fn gone() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

struct Work {
    connection: Connection,
    metrics: Arc<Metrics>,
    /// Bytes of each tenant's rows.
    used: sqlite::Used,
    appended: Arc<Notify>,
}

impl Work {
    fn run(mut self, queued: &Receiver<Order>) {
        let mut held = None;
        while let Some(order) = held.take().or_else(|| queued.recv().ok()) {
            match order {
                Order::Append(append) => held = self.append(append, queued),
                Order::RowChange(change, done) => drop(done.send(self.change(change))),
                Order::End(done) => {
                    drop(self);
                    // The caller may have given up waiting.
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    /// Writes an append and the ones queued behind it in one transaction. Returns an order that is no append, if one
    /// came.
    fn append(&mut self, first: Append, queued: &Receiver<Order>) -> Option<Order> {
        let mut group: Vec<Append> = Vec::new();
        let (mut count, mut held, mut next) = (0, None, Some(first));
        while let Some(append) = next.take() {
            if self.reserve(&append) {
                count += append.rows.len();
                group.push(append);
            } else {
                drop(append.done.send(Err(StoreError::Quota)));
            }
            if count < GROUP_ROWS {
                match queued.try_recv() {
                    Ok(Order::Append(append)) => next = Some(append),
                    Ok(other) => held = Some(other),
                    Err(_) => {}
                }
            }
        }
        if group.is_empty() {
            return held;
        }
        match self.write(&group) {
            // One append may be too large for the space that is left. The others need not be.
            Err(_) if group.len() > 1 => {
                for append in group {
                    let alone = vec![append];
                    let written = self.write(&alone);
                    self.answer(alone, written);
                }
            }
            written => self.answer(group, written),
        }
        held
    }

    fn write(&mut self, group: &[Append]) -> rusqlite::Result<()> {
        let started = Instant::now();
        let transaction = self.connection.transaction()?;
        for append in group {
            sqlite::insert(&transaction, &append.rows)?;
        }
        let committed = transaction.commit();
        self.metrics.records_commit_seconds.observe(started.elapsed().as_secs_f64());
        committed
    }

    /// Answers the appends of a group, and counts their rows.
    fn answer(&mut self, group: Vec<Append>, written: rusqlite::Result<()>) {
        let count: usize = group.iter().map(|append| append.rows.len()).sum();
        match &written {
            Ok(()) => {
                self.metrics.records_appended.inc_by(count as u64);
                self.metrics.records_waiting.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
                self.appended.notify_one();
            }
            Err(error) => {
                tracing::error!(%error, "records cannot be written");
                for append in &group {
                    if let Some(first) = append.rows.first() {
                        self.release(&first.collection.tenant, append.bytes());
                    }
                }
            }
        }
        for append in group {
            // The rows are written even if the caller no longer waits.
            drop(append.done.send(written.as_ref().map(|_| ()).map_err(refusal)));
        }
    }

    fn change(&mut self, change: RowChange) -> Result<usize, StoreError> {
        let changed = (|| {
            let transaction = self.connection.transaction()?;
            let freed = change(&transaction)?;
            transaction.commit()?;
            Ok(freed)
        })();
        let freed: Freed = changed.map_err(|error: rusqlite::Error| refusal(&error))?;
        for (tenant, bytes) in &freed.bytes {
            self.release(tenant, *bytes);
        }
        self.metrics.records_waiting.dec_by(i64::try_from(freed.rows).unwrap_or(i64::MAX));
        Ok(freed.rows)
    }

    /// Adds the rows' bytes to their tenant's, if its quota allows them.
    fn reserve(&mut self, append: &Append) -> bool {
        let Some(first) = append.rows.first() else { return true };
        let bytes = append.bytes();
        let used = self.used.entry(Arc::clone(&first.collection.tenant)).or_default();
        let fits = used.saturating_add(bytes) <= append.quota;
        *used += if fits { bytes } else { 0 };
        fits
    }

    fn release(&mut self, tenant: &Arc<str>, bytes: u64) {
        if let Some(used) = self.used.get_mut(tenant) {
            *used = used.saturating_sub(bytes);
        }
    }
}

/// The error that a caller gets.
fn refusal(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full("the store, or its disk, is full"),
        _ => StoreError::Unavailable(format!("the store cannot be written: {error}")),
    }
}
