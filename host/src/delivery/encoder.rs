//! Encodes what is large on threads of its own. Shards write to sockets meanwhile, and are told when it is ready.
//!
//! A publication of many mebibytes takes long to compress, and so does a snapshot of many keys, or a page of a
//! channel's log. The clients that want it wait for that, not those beside them. A tenant has one order worked on at a
//! time, and tenants have theirs in turn.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use rustix::process::setpriority_process;
use tokio::sync::oneshot;

use crate::{
    channel::{Channel, Chunk, Format, Since, SnapshotNow},
    metrics::TenantMetrics,
    sync::{Condvar, Mutex},
};

/// How many orders of different tenants are worked on at once.
const THREADS: usize = 2;
/// The niceness of the threads: as that of guests, behind sockets.
const NICE: i32 = 5;

/// What a shard wants to be made.
pub enum Work {
    /// This chunk, in the format of its readers.
    Chunk(Arc<Chunk>),
    /// The channel's snapshot for a reader that has this.
    Snapshot(Since),
}

/// What was ordered, to tell orders apart.
#[derive(PartialEq, Eq)]
pub struct Ordered {
    what: OrderedWork,
    format: Format,
}

#[derive(PartialEq, Eq)]
enum OrderedWork {
    /// The chunk at this address.
    Chunk(usize),
    /// The snapshot of all, or the one with removals.
    Snapshot { of_all: bool },
}

impl Ordered {
    pub fn new(work: &Work, format: Format) -> Self {
        let what = match work {
            Work::Chunk(chunk) => OrderedWork::Chunk(Arc::as_ptr(chunk).addr()),
            Work::Snapshot(since) => OrderedWork::Snapshot { of_all: *since == Since::Nothing },
        };
        Self { what, format }
    }
}

impl Work {
    /// Makes it, and then its format, for those that ask next.
    pub fn make(self, format: Format, channel: &Channel) {
        let made = match self {
            // Once the log has dropped it, its clients go on elsewhere.
            Self::Chunk(chunk) => Some(chunk).filter(|chunk| !chunk.is_pinned()),
            Self::Snapshot(since) => match channel.snapshot(since, 0) {
                SnapshotNow::Ready(chunk) => Some(chunk),
                SnapshotNow::ToMake => channel.make_snapshot(since),
                SnapshotNow::Unknown => None,
            },
        };
        if let Some(chunk) = made {
            chunk.encoded(format, channel);
        }
    }
}

/// Something to do for a tenant.
struct Order {
    metrics: Arc<TenantMetrics>,
    work: Box<dyn FnOnce() + Send>,
}

/// A tenant, by the address of its metrics.
type Tenant = usize;

#[derive(Default)]
pub struct Encoder {
    orders: Mutex<Orders>,
    ready: Condvar,
}

#[derive(Default)]
struct Orders {
    lines: HashMap<Tenant, VecDeque<Order>>,
    /// The tenants that have a line, in the order of their turns.
    turns: VecDeque<Tenant>,
    /// Those that have an order worked on.
    busy: HashSet<Tenant>,
    is_closed: bool,
}

impl Encoder {
    /// `name`: of its threads.
    pub fn start(name: &str) -> io::Result<Arc<Self>> {
        let encoder = Arc::new(Self::default());
        for index in 0..THREADS {
            let own = Arc::clone(&encoder);
            let run = move || {
                // It may fail: then it has as much of the processors as the others.
                let _ = setpriority_process(None, NICE);
                own.run();
            };
            let run = move || {
                // Clients wait for it. The process ends, so that its supervisor starts it again.
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    tracing::error!("the encoder has panicked; the process ends");
                    std::process::exit(1);
                }
            };
            thread::Builder::new().name(format!("{name}-{index}")).spawn(run)?;
        }
        Ok(encoder)
    }

    /// Has this done when it is its tenant's turn.
    pub fn order(&self, metrics: &Arc<TenantMetrics>, work: impl FnOnce() + Send + 'static) {
        let order = Order { metrics: Arc::clone(metrics), work: Box::new(work) };
        let tenant = order.tenant();
        let mut orders = self.orders.lock();
        if orders.is_closed {
            return;
        }
        let Orders { lines, turns, .. } = &mut *orders;
        let line = lines.entry(tenant).or_insert_with(|| {
            turns.push_back(tenant);
            VecDeque::new()
        });
        line.push_back(order);
        self.ready.notify_one();
    }

    /// Returns what this makes when it is its tenant's turn. It is not made for someone who no longer waits. `None`:
    /// the relay ends.
    pub async fn make<T: Send + 'static>(
        &self,
        metrics: &Arc<TenantMetrics>,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (made, is_made) = oneshot::channel();
        self.order(metrics, move || {
            if !made.is_closed() {
                // If nobody waits any more, nobody wants it.
                let _ = made.send(make());
            }
        });
        is_made.await.ok()
    }

    /// Ends the threads.
    pub fn close(&self) {
        let lines = {
            let mut orders = self.orders.lock();
            orders.is_closed = true;
            orders.turns.clear();
            std::mem::take(&mut orders.lines)
        };
        // Dropping an order tells the one that waits for it.
        drop(lines);
        (0..THREADS).for_each(|_| self.ready.notify_one());
    }

    fn run(&self) {
        loop {
            let mut next = None;
            let orders = self.orders.lock();
            drop(self.ready.wait_while(orders, |orders| {
                next = if orders.is_closed { None } else { orders.next() };
                next.is_none() && !orders.is_closed
            }));
            let Some(order) = next else { return };
            let tenant = order.tenant();
            order.carry_out();
            let mut orders = self.orders.lock();
            orders.busy.remove(&tenant);
            // Its next order may have waited for this one alone.
            self.ready.notify_one();
        }
    }
}

impl Orders {
    /// The next order of a tenant that has none worked on.
    fn next(&mut self) -> Option<Order> {
        let nth = self.turns.iter().position(|tenant| !self.busy.contains(tenant))?;
        let tenant = self.turns.remove(nth)?;
        let line = self.lines.get_mut(&tenant)?;
        let order = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        self.busy.insert(tenant);
        order
    }
}

impl Order {
    fn tenant(&self) -> Tenant {
        Arc::as_ptr(&self.metrics).addr()
    }

    fn carry_out(self) {
        let began = Instant::now();
        (self.work)();
        self.metrics.processor_seconds.inc_by(began.elapsed().as_secs_f64());
    }
}
