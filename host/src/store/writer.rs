//! The one thread that writes to the SQLite file. Rows over a tenant's quota do not get to it.
//!
//! It answers each append after its commit is on disk. Appends that queue while the disk is busy become one
//! transaction, so that all of them wait for the disk once; if they are many, those of each tenant in turn. A tenant's
//! own are written in their order.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::Instant,
};

use rusqlite::{Connection, ErrorCode, Transaction};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::{
    metrics::Metrics,
    store::{StoreError, record::Row, sqlite, sqlite::Use},
    sync::Mutex,
};

/// Most rows of one transaction, and the most bytes, unless one append has more.
const GROUP_ROWS: usize = 10_000;
const GROUP_BYTES: u64 = 4 << 20;

type Done = oneshot::Sender<Result<(), StoreError>>;
type RowChange = Box<dyn FnOnce(&Transaction<'_>) -> rusqlite::Result<Freed> + Send>;

/// What a change removed from the records, by tenant.
#[derive(Default)]
pub struct Freed(sqlite::Used);

impl Freed {
    pub fn add(&mut self, tenant: &Arc<str>, rows: u64, bytes: u64) {
        let freed = self.0.entry(Arc::clone(tenant)).or_default();
        *freed = Use { rows: freed.rows + rows, bytes: freed.bytes + bytes };
    }

    pub fn rows(&self) -> u64 {
        self.0.values().map(|freed| freed.rows).sum()
    }
}

/// Rows of one tenant that are to be written, all or none. Their bytes have been reserved.
struct Append {
    rows: Vec<Row>,
    done: Done,
    /// Its share of the room for rows that wait, and of its tenant's part of it. They are given back once the rows are
    /// written, even if the caller waits no more.
    _room: [OwnedSemaphorePermit; 2],
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

/// The appends that wait: each tenant's in their order, and the tenants in turn.
#[derive(Default)]
struct Waiting {
    tenants: HashMap<Arc<str>, VecDeque<Append>>,
    turns: VecDeque<Arc<str>>,
}

impl Waiting {
    fn push(&mut self, append: Append) {
        let Some(tenant) = append.rows.first().map(|row| Arc::clone(&row.collection.tenant)) else {
            // Nothing to write.
            return drop(append.done.send(Ok(())));
        };
        let line = self.tenants.entry(Arc::clone(&tenant)).or_insert_with(|| {
            self.turns.push_back(tenant);
            VecDeque::new()
        });
        line.push_back(append);
    }

    fn next(&mut self) -> Option<Append> {
        let tenant = self.turns.pop_front()?;
        let line = self.tenants.get_mut(&tenant)?;
        let append = line.pop_front();
        if line.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        append
    }

    /// The appends of the next transaction.
    fn group(&mut self) -> Vec<Append> {
        let (mut group, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < GROUP_ROWS
            && bytes < GROUP_BYTES
            && let Some(append) = self.next()
        {
            (rows, bytes) = (rows + append.rows.len(), bytes + append.bytes());
            group.push(append);
        }
        group
    }
}

/// What each tenant has in the file. Bytes that wait to be written are included.
struct Reserved(Mutex<sqlite::Used>);

impl Reserved {
    /// Adds bytes to a tenant's, if its quota allows them.
    fn take(&self, tenant: &Arc<str>, bytes: u64, quota: u64) -> bool {
        let mut used = self.0.lock();
        let used = used.entry(Arc::clone(tenant)).or_default();
        let fits = used.bytes.saturating_add(bytes) <= quota;
        used.bytes += if fits { bytes } else { 0 };
        fits
    }

    fn give_back(&self, tenant: &Arc<str>, bytes: u64) {
        if let Some(used) = self.0.lock().get_mut(tenant) {
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }

    /// Counts rows that have been written. Returns what the tenant has.
    fn wrote(&self, tenant: &Arc<str>, rows: u64) -> Use {
        let mut used = self.0.lock();
        let used = used.entry(Arc::clone(tenant)).or_default();
        used.rows += rows;
        *used
    }

    /// Returns what the tenant has after something was removed.
    fn freed(&self, tenant: &Arc<str>, freed: Use) -> Use {
        let mut used = self.0.lock();
        let used = used.entry(Arc::clone(tenant)).or_default();
        *used = Use { rows: used.rows.saturating_sub(freed.rows), bytes: used.bytes.saturating_sub(freed.bytes) };
        *used
    }
}

/// The handle to the thread.
pub struct Writer {
    orders: Sender<Order>,
    reserved: Arc<Reserved>,
    /// Notified when rows have been appended.
    pub appended: Arc<Notify>,
}

impl Writer {
    pub fn start(connection: Connection, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (orders, queued) = channel();
        let appended = Arc::new(Notify::new());
        let used = sqlite::usage(&connection).map_err(io::Error::other)?;
        for (tenant, used) in &used {
            metrics.outbox(tenant, used.rows, used.bytes);
        }
        metrics.records_waiting.set(signed(used.values().map(|used| used.rows).sum()));
        let reserved = Arc::new(Reserved(Mutex::new(used)));
        let work = Work { connection, metrics, reserved: Arc::clone(&reserved), appended: Arc::clone(&appended) };
        // [`Writer::end`] ends the thread. It is not joined, since a disk that does not answer would make that endless.
        thread::Builder::new().name("records".into()).spawn(move || work.run(&queued))?;
        Ok(Self { orders, reserved, appended })
    }

    /// Reserves the bytes of rows of one tenant. `quota`: how many it may have here. `None`: they are over it.
    pub fn reserve(&self, rows: Vec<Row>, quota: u64) -> Option<ReservedRows> {
        let bytes = rows.iter().map(Row::cost).sum();
        let fits = rows.first().is_none_or(|first| self.reserved.take(&first.collection.tenant, bytes, quota));
        fits.then(|| ReservedRows { rows, bytes, reserved: Arc::clone(&self.reserved) })
    }

    /// Writes rows of one tenant, all or none. Returns when they are on disk.
    pub async fn append(&self, rows: ReservedRows, room: [OwnedSemaphorePermit; 2]) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Append(Append { rows: rows.into_rows(), done, _room: room }));
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

/// Rows whose bytes are their tenant's already. They are given back if the rows are dropped before they are ordered.
pub struct ReservedRows {
    rows: Vec<Row>,
    pub bytes: u64,
    reserved: Arc<Reserved>,
}

impl ReservedRows {
    fn into_rows(mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows)
    }
}

impl Drop for ReservedRows {
    fn drop(&mut self) {
        if let Some(first) = self.rows.first() {
            self.reserved.give_back(&first.collection.tenant, self.bytes);
        }
    }
}

fn gone() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

struct Work {
    connection: Connection,
    metrics: Arc<Metrics>,
    reserved: Arc<Reserved>,
    appended: Arc<Notify>,
}

impl Work {
    fn run(mut self, queued: &Receiver<Order>) {
        let (mut waiting, mut ended) = (Waiting::default(), None);
        loop {
            // What has queued is one transaction, and so is each change.
            let mut next = match waiting.turns.is_empty() && ended.is_none() {
                true => queued.recv().map_err(|_| TryRecvError::Disconnected),
                false => queued.try_recv(),
            };
            while let Ok(order) = next {
                match order {
                    Order::Append(append) => waiting.push(append),
                    Order::RowChange(change, done) => drop(done.send(self.change(change))),
                    Order::End(done) => ended = Some(done),
                }
                next = queued.try_recv();
            }
            if !waiting.turns.is_empty() {
                self.append(waiting.group());
            } else if ended.is_some() || matches!(next, Err(TryRecvError::Disconnected)) {
                break;
            }
        }
        drop(self);
        // The caller may have given up waiting.
        if let Some(done) = ended {
            let _ = done.send(());
        }
    }

    /// Writes appends in one transaction.
    fn append(&mut self, group: Vec<Append>) {
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
    }

    fn write(&mut self, group: &[Append]) -> rusqlite::Result<()> {
        let started = Instant::now();
        let transaction = self.connection.transaction()?;
        sqlite::insert(&transaction, group.iter().flat_map(|append| &append.rows))?;
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
                self.metrics.records_waiting.inc_by(signed(count as u64));
                let mut by_tenant: HashMap<&Arc<str>, u64> = HashMap::new();
                for append in &group {
                    let tenant = append.rows.first().map(|row| &row.collection.tenant);
                    tenant
                        .into_iter()
                        .for_each(|tenant| *by_tenant.entry(tenant).or_default() += append.rows.len() as u64);
                }
                for (tenant, rows) in by_tenant {
                    let used = self.reserved.wrote(tenant, rows);
                    self.metrics.outbox(tenant, used.rows, used.bytes);
                }
                self.appended.notify_one();
            }
            Err(error) => {
                tracing::error!(%error, "records cannot be written");
                for append in &group {
                    if let Some(first) = append.rows.first() {
                        self.reserved.give_back(&first.collection.tenant, append.bytes());
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
        for (tenant, freed) in &freed.0 {
            let used = self.reserved.freed(tenant, *freed);
            self.metrics.outbox(tenant, used.rows, used.bytes);
        }
        let rows = freed.rows();
        self.metrics.records_waiting.dec_by(signed(rows));
        Ok(usize::try_from(rows).unwrap_or(usize::MAX))
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The error that a caller gets.
fn refusal(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full("the store, or its disk, is full"),
        _ => StoreError::Unavailable(format!("the store cannot be written: {error}")),
    }
}
