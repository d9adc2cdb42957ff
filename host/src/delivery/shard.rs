//! Shards: threads that own the clients' sockets, from the handshake to the close, also at shutdown.
//!
//! A shard's [`Queue`] brings it clients whose handshake is done, and notices of new chunks. It writes bytes to the
//! clients' sockets. A shard has its own epoll, its own table of clients, and its own view of every channel that one of
//! them follows. It shares nothing else but the count of what a tenant sends, and never waits for a client. A client
//! whose socket is full keeps its cursor, and the shard goes on when the socket has room. What becomes of a client
//! whose position has left the log is its channel's policy: it is closed with 1013, skips, or gets the latest of each
//! key.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token};
use rand::seq::SliceRandom as _;
use slab::Slab;
use wire::deflate::Inflater;

pub use crate::delivery::shard::deadlines::Due;
use crate::{
    channel::{Channel, Format, Reader, Start},
    delivery::{
        BudgetShare, ClientId, ClientLimits, Connected, LaterRecipient,
        encoder::Encoder,
        end::End,
        queue::{Queue, ShardCommand, Step},
        shard::{
            deadlines::Deadlines,
            row::{Row, flag},
            to_do::{Steps, Task, ToDo},
            turns::{Lines, OnceInLine, Tenant, Turn},
            view::View,
        },
    },
    metrics::TenantMetrics,
    sync::Mutex,
};

mod adopt;
mod close;
mod cursor;
mod deadlines;
mod deliver;
#[cfg(test)]
mod model;
mod pending;
mod ready;
mod receive;
mod row;
mod sse_ids;
mod steps;
mod to_do;
mod turns;
mod view;

const WAKER: Token = Token(usize::MAX);
/// Size of the buffer that all reads of a shard share, in bytes.
const READ_BUFFER: usize = 64 << 10;
/// How often the liveness sweep visits every row in the shortest time that it watches over.
const SWEEPS_PER_TIMEOUT: u32 = 8;
/// How many ticks one such visit takes. Each tick looks at a part of the table.
const TICKS_PER_SWEEP: u32 = 8;
/// Longest tick, however long clients may be silent: the time to answer a close frame is short.
const MAX_TICK: Duration = Duration::from_millis(500);

/// For how many there stays room of what a herd of clients has taken, when it is done.
const KEPT_ROOM: usize = 256;

/// Time between two clients of the host that are closed at a shutdown, if there is so much. A herd comes back as it is
/// sent away.
const CLOSED_APART: Duration = Duration::from_millis(1);

/// The times that bound a client's silence.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub ping_interval: Duration,
    pub stall_timeout: Duration,
}

/// A client whose handshake is done.
pub struct Newcomer {
    pub socket: std::net::TcpStream,
    /// Bytes that the client sent right after its handshake.
    pub leftover: Vec<u8>,
    pub accepted: Accepted,
}

/// A client that is let in.
pub struct Accepted {
    pub client: Connected,
    /// What its recipient is made of. `None`: it has one, or needs none.
    pub recipient: Option<LaterRecipient>,
    pub channels: Vec<(Arc<Channel>, Start)>,
    pub format: Format,
    /// Whether it has agreed to permessage-deflate.
    pub deflates: bool,
    /// The first bytes that it is sent.
    pub first_bytes: Vec<u8>,
    /// Channels in which something is missing after the position that the client came with.
    pub gaps: Vec<Arc<str>>,
    /// When its connection ends by itself, and why.
    pub deadline: Option<(Instant, Due)>,
    /// Why it is closed at once. It is let in only to be told.
    pub close_at_once: Option<End>,
}

impl Accepted {
    /// A plain WebSocket client that follows nothing yet.
    pub fn new(client: Connected) -> Self {
        Self {
            client,
            recipient: None,
            channels: Vec::new(),
            format: Format::Raw,
            deflates: false,
            first_bytes: Vec::new(),
            gaps: Vec::new(),
            deadline: None,
            close_at_once: None,
        }
    }

    /// The id by which the tenant's code knows the client. `None`: none of the tenant's code does.
    fn id(&self) -> Option<ClientId> {
        self.recipient.as_ref().map(|later| later.id).or(self.client.id())
    }
}

/// All shards of the host.
pub struct Shards {
    queues: Vec<Arc<Queue>>,
    encoder: Arc<Encoder>,
    /// Makes pages of channels' logs, which so do not wait for large publications of others.
    pages: Arc<Encoder>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next: AtomicUsize,
}

impl Shards {
    pub fn start(count: usize, timing: Timing) -> io::Result<Self> {
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        let [encoder, pages] = match count {
            0 => Default::default(),
            _ => [Encoder::start("encode")?, Encoder::start("page")?],
        };
        for index in 0..count {
            let shard = Shard::new(timing, Arc::clone(&encoder))?;
            queues.push(Arc::clone(&shard.queue));
            let thread = move || {
                // Its clients can be neither served nor told. The process ends, so that its supervisor starts it again.
                match catch_unwind(AssertUnwindSafe(|| shard.run())) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => tracing::error!(%error, "a shard cannot wait for its sockets; the process ends"),
                    Err(_) => tracing::error!("a shard has panicked; the process ends"),
                }
                std::process::exit(1);
            };
            threads.push(thread::Builder::new().name(format!("shard-{index}")).spawn(thread)?);
        }
        Ok(Self { queues, encoder, pages, threads: Mutex::new(threads), next: AtomicUsize::new(0) })
    }

    /// Hands a client to the shard that its id names. A client without an id goes to the next shard in turn.
    pub fn adopt(&self, newcomer: Newcomer) {
        let shard = match newcomer.accepted.id() {
            Some(id) => id.shard(),
            None => self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len().max(1),
        };
        if let Some(queue) = self.queues.get(shard) {
            queue.push(ShardCommand::Client(Box::new(newcomer)));
        }
    }

    /// A new id, for a client that the tenant's handler is asked about.
    pub fn next_id(&self, client_limits: &ClientLimits) -> ClientId {
        ClientId::new(client_limits.shard_turn.next(self.queues.len()))
    }

    /// Takes steps with a client of this tenant, in the order of the calls. A client that is gone is left alone.
    /// `share`: what they take of the tenant's budget while they wait, besides replies, which have shares of their own.
    pub fn take_steps(
        &self,
        client: ClientId,
        client_limits: &Arc<ClientLimits>,
        steps: Vec<Step>,
        share: Option<BudgetShare>,
    ) {
        if let Some(queue) = self.queues.get(client.shard()) {
            queue.push(ShardCommand::TakeSteps { client, client_limits: Arc::clone(client_limits), steps, share });
        }
    }

    /// Returns what this makes of a page of a channel's log, on a thread of its own when it is its tenant's turn there.
    /// `None`: the relay ends.
    pub async fn make_page<T: Send + 'static>(
        &self,
        metrics: &Arc<TenantMetrics>,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.pages.make(metrics, make).await
    }

    /// Closes every client of a removed tenant, including clients that are yet to come.
    pub fn close_all_of(&self, client_limits: &Arc<ClientLimits>) {
        client_limits.removed.store(true, Ordering::Relaxed);
        for queue in &self.queues {
            queue.push(ShardCommand::TenantGone(Arc::clone(client_limits)));
        }
    }

    /// Closes every client and waits for the threads, at most until `end`.
    pub fn shutdown(&self, end: Instant) {
        let apart = CLOSED_APART * u32::try_from(self.queues.len()).unwrap_or(u32::MAX);
        for queue in &self.queues {
            queue.push(ShardCommand::Shutdown { end, apart });
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // An error means a panic, and that has ended the process.
            let _ = thread.join();
        }
        self.encoder.close();
        self.pages.close();
    }
}

struct Shard {
    poll: Poll,
    queue: Arc<Queue>,
    /// The queue again, in the type that channels know.
    reader: Arc<dyn Reader>,
    rows: Slab<Row>,
    /// Rows of clients with an id.
    by_id: HashMap<ClientId, usize>,
    views: Slab<View>,
    /// Views by their channel's address.
    by_channel: HashMap<usize, usize>,
    /// Rows that have something to be read.
    to_read: Lines,
    /// Rows whose turn to be written to was cut short, or has not come.
    to_write: OnceInLine,
    /// Bytes that new chunks have put into sockets in this turn, by tenant.
    fanned_out: HashMap<Tenant, usize>,
    /// What tenants have asked for and is not done yet.
    to_do: ToDo,
    /// Rows that wait until something of a view is made.
    encoding: HashMap<usize, HashSet<usize>>,
    /// Makes it.
    encoder: Arc<Encoder>,
    /// When clients were told of dropped messages, and their rows, in the order of the times.
    refused: VecDeque<(u32, usize)>,
    /// Rows whose close frame is not answered yet.
    closing: Vec<usize>,
    deadlines: Deadlines,
    buffer: Vec<u8>,
    /// Shared by all clients that compress.
    inflater: Option<Inflater>,
    timing: Timing,
    tick: Duration,
    next_tick: Instant,
    /// The slot at which the sweep goes on.
    sweep_from: usize,
    started: Instant,
    /// Milliseconds since `started`, wrapping: only differences count.
    now: u32,
    /// The clients that are yet to be told of the shutdown, and when they are.
    leaving: VecDeque<(Instant, usize)>,
    behind_until: Instant,
    /// When to end, even if there are clients left. `None`: the host is not shutting down.
    end: Option<Instant>,
}

impl Shard {
    fn new(timing: Timing, encoder: Arc<Encoder>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let queue = Arc::new(Queue::new(poll.registry(), WAKER)?);
        let tick =
            (timing.ping_interval.min(timing.stall_timeout) / (SWEEPS_PER_TIMEOUT * TICKS_PER_SWEEP)).min(MAX_TICK);
        let started = Instant::now();
        Ok(Self {
            poll,
            reader: Arc::new(Arc::clone(&queue)),
            queue,
            rows: Slab::new(),
            by_id: HashMap::new(),
            views: Slab::new(),
            by_channel: HashMap::new(),
            to_read: Lines::default(),
            to_write: OnceInLine::default(),
            encoding: HashMap::new(),
            encoder,
            fanned_out: HashMap::new(),
            to_do: ToDo::default(),
            refused: VecDeque::new(),
            closing: Vec::new(),
            deadlines: Deadlines::default(),
            buffer: vec![0; READ_BUFFER],
            inflater: None,
            timing,
            tick,
            next_tick: started + tick,
            sweep_from: 0,
            started,
            now: 0,
            leaving: VecDeque::new(),
            behind_until: started,
            end: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut commands = Vec::new();
        loop {
            let wait = match self.to_write.lines.is_idle() && self.to_read.is_idle() && self.to_do.is_empty() {
                true => self.next_event().saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            self.turn(&mut events, &mut commands, wait)?;
            if self.end.is_some_and(|end| self.rows.is_empty() || Instant::now() >= end) {
                self.queue.close();
                return Ok(());
            }
        }
    }

    /// When there is something to do even if nothing comes.
    fn next_event(&self) -> Instant {
        let next_leaving = self.leaving.front().map(|(at, _)| *at);
        let ends = [self.to_read.next_end(), self.to_write.lines.next_end(), next_leaving, self.end];
        ends.into_iter().flatten().fold(self.next_tick, Instant::min)
    }

    /// Waits for something to do, then does what has come, as much as may be done at a time.
    fn turn(&mut self, events: &mut Events, commands: &mut Vec<ShardCommand>, wait: Duration) -> io::Result<()> {
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = Instant::now();
        self.now = millis(now - self.started);
        let mut writable = Vec::new();
        for event in events.iter().filter(|event| event.token() != WAKER) {
            let slot = event.token().0;
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.queue_to_read(slot, event.is_read_closed() || event.is_error());
            }
            if event.is_writable() {
                writable.push(slot);
            }
        }
        self.to_read.end_pauses(now);
        self.to_write.lines.end_pauses(now);
        // What is new goes out first, and between the turns: it waits for nobody's.
        self.fanned_out.clear();
        self.obey(commands, now, &Turn::new());
        self.read_turns();
        self.look_again(commands, now);
        // After it was read: a client that is gone may have sent something before.
        for slot in writable {
            self.queue_to_write(slot);
        }
        self.write_turns();
        self.look_again(commands, now);
        self.task_turns();
        self.tell_all_refused();
        self.close_leaving(now);
        if now >= self.next_tick {
            self.next_tick = now + self.tick;
            self.sweep();
            self.end_due(now);
            self.to_do.tidy();
            self.deadlines.tidy();
            if commands.capacity() > KEPT_ROOM {
                *commands = Vec::new();
            }
        }
        Ok(())
    }

    /// Looks for what is new where tenants are in line for their turns. Tasks get in line, too.
    fn look_again(&mut self, commands: &mut Vec<ShardCommand>, now: Instant) {
        if !(self.to_read.is_idle() && self.to_write.lines.is_idle() && self.to_do.is_empty()) {
            self.obey(commands, now, &Turn::over());
        }
    }

    /// Does what other threads have asked for, tasks while `turn` lasts. The others get in line.
    fn obey(&mut self, commands: &mut Vec<ShardCommand>, now: Instant, turn: &Turn) {
        self.queue.take(commands);
        for command in commands.drain(..) {
            match command {
                ShardCommand::Client(newcomer) => self.take_task(Task::Client(newcomer), turn),
                ShardCommand::NewChunks(view) => self.fan_out(view),
                ShardCommand::Encoded(view, ordered) => self.encoded(view, &ordered),
                ShardCommand::TakeSteps { client, client_limits, steps, share } => {
                    let steps = Steps { client, client_limits, steps: steps.into_iter(), _share: share };
                    self.take_task(Task::Steps(steps), turn);
                }
                ShardCommand::TenantGone(client_limits) => self.close_all_of(&client_limits),
                ShardCommand::Shutdown { end, apart } => self.begin_shutdown(now, end, apart),
            }
        }
    }

    /// The view of a channel. The shard attaches to the channel if this is its first client here.
    fn view(&mut self, channel: &Arc<Channel>) -> usize {
        if let Some(view) = self.by_channel.get(&Arc::as_ptr(channel).addr()) {
            return *view;
        }
        let view = self.views.vacant_key();
        let (log, end) = channel.attach(Arc::clone(&self.reader), view);
        self.by_channel.insert(Arc::as_ptr(channel).addr(), view);
        self.views.insert(View::new(Arc::clone(channel), log, end))
    }

    /// Begins to close all clients, in any order and a few at a time, so that they do not all come back at once.
    fn begin_shutdown(&mut self, now: Instant, end: Instant, apart: Duration) {
        // What was asked before is done.
        while !self.to_do.is_empty() {
            self.task_turns();
        }
        self.end = Some(end);
        let mut slots: Vec<usize> = self.rows.iter().map(|(slot, _)| slot).collect();
        slots.shuffle(&mut rand::rng());
        let half = end.saturating_duration_since(now) / 2;
        let apart = apart.min(half / u32::try_from(slots.len()).unwrap_or(u32::MAX).max(1));
        self.leaving = slots.into_iter().zip(0..).map(|(slot, nth)| (now + apart * nth, slot)).collect();
        self.behind_until = now + half;
    }

    /// Closes the clients whose time has come. Those that are behind have until half of the time is over.
    fn close_leaving(&mut self, now: Instant) {
        while let Some((at, slot)) = self.leaving.front().copied()
            && at <= now
        {
            self.leaving.pop_front();
            if now < self.behind_until && self.rows.get(slot).is_some_and(|row| row.is(flag::BEHIND)) {
                self.leaving.push_back((self.behind_until, slot));
            } else {
                self.close(slot, &End::Shutdown);
            }
        }
    }

    fn close_all_of(&mut self, client_limits: &Arc<ClientLimits>) {
        let own = |(slot, row): (usize, &Row)| Arc::ptr_eq(row.client.client_limits(), client_limits).then_some(slot);
        let slots: Vec<usize> = self.rows.iter().filter_map(own).collect();
        for slot in slots {
            self.close(slot, &End::Tenant);
        }
    }

    fn watch(&mut self, slot: usize, interest: Interest) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if let Err(error) = self.poll.registry().reregister(&mut row.socket, Token(slot), interest) {
            tracing::warn!(%error, "a client's socket cannot be watched");
            self.remove(slot, "io");
        }
    }
}

/// Milliseconds. They wrap after 49 days, so only differences are used.
#[allow(clippy::cast_possible_truncation)]
fn millis(duration: Duration) -> u32 {
    duration.as_millis() as u32
}

/// A slot in 32 bits. Open files bound the number of slots far below 2³².
fn index(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use config::HostLimits;

    use super::*;

    /// Balancers cut connections that are silent for 30 s, and some for 29.
    #[test]
    fn by_default_no_client_is_silent_for_longer_than_28_seconds() {
        let HostLimits { ping_interval, stall_timeout, .. } = HostLimits::default();
        let late = ping_interval.min(stall_timeout) / SWEEPS_PER_TIMEOUT + MAX_TICK;
        assert!(ping_interval + late <= Duration::from_secs(28), "{:?}", ping_interval + late);
    }
}
