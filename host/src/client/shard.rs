//! Shards: threads that own the clients' sockets.
//!
//! In come clients whose handshake is done and word of fresh chunks, by the shard's [`Queue`]; out go bytes. A shard has
//! its own epoll, table of clients and view of every channel that one of them follows; it shares nothing else, takes no
//! lock per client and never waits for one. A client that its socket holds back keeps its cursor and is written to when
//! the socket has room; one whose position has left the log is closed with 1013.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use self::{
    row::{Cursors, Row, Step, flag},
    view::{Subscriber, View},
};
use crate::{
    channel::{Channel, Reader},
    client::{
        Connected,
        frame::{self, Violation},
        message::Event,
        queue::{Command, Queue},
    },
};

mod row;
mod view;

const WAKER: Token = Token(usize::MAX);
/// Shared by all reads of a shard.
const READ_BUFFER: usize = 64 << 10;
/// Buffers read from one client before the others have their turn.
const READS_PER_TURN: usize = 4;
/// Control frames queued for a client that takes none; past this, pongs are left out (RFC 6455 section 5.5.3 lets the
/// latest answer stand for all).
const MAX_QUEUED: usize = 4 << 10;
/// How long a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The liveness sweep visits every row this many times in a ping interval, a part of the table at each tick.
const SWEEPS: u32 = 8;
/// Ticks of one such visit of the whole table.
const TICKS: u32 = 8;

/// What bounds a client's silence.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub ping_interval: Duration,
    pub stall_timeout: Duration,
    pub shutdown_timeout: Duration,
}

/// A client whose handshake is done.
pub struct Newcomer {
    pub socket: std::net::TcpStream,
    /// Bytes that came behind its handshake.
    pub leftover: Vec<u8>,
    pub client: Connected,
    pub channels: Vec<Arc<Channel>>,
}

/// All shards of the host.
pub struct Shards {
    queues: Vec<Arc<Queue>>,
    threads: Vec<JoinHandle<()>>,
    next: AtomicUsize,
}

impl Shards {
    pub fn start(count: usize, timing: Timing) -> io::Result<Self> {
        let mut shards = Self { queues: Vec::new(), threads: Vec::new(), next: AtomicUsize::new(0) };
        for index in 0..count {
            let shard = Shard::new(timing)?;
            shards.queues.push(Arc::clone(&shard.queue));
            shards.threads.push(thread::Builder::new().name(format!("shard-{index}")).spawn(move || shard.run())?);
        }
        Ok(shards)
    }

    /// Hands a client to the next shard in turn.
    pub fn adopt(&self, newcomer: Newcomer) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(queue) = self.queues.get(turn % self.queues.len().max(1)) {
            queue.push(Command::Client(Box::new(newcomer)));
        }
    }

    /// Closes every client with 1001 and waits for the threads, which takes at most the shutdown timeout.
    pub fn shutdown(self) {
        for queue in &self.queues {
            queue.push(Command::Shutdown);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a shard has panicked");
            }
        }
    }
}

struct Shard {
    poll: Poll,
    queue: Arc<Queue>,
    /// The queue again, as channels know it.
    reader: Arc<dyn Reader>,
    rows: Slab<Row>,
    views: Slab<View>,
    /// Views by their channel's address.
    by_channel: HashMap<usize, usize>,
    /// Rows whose turn was cut short.
    again: Vec<usize>,
    /// Rows that wait for the answer to a close frame.
    closing: Vec<usize>,
    buffer: Vec<u8>,
    timing: Timing,
    tick: Duration,
    next_tick: Instant,
    /// Where the sweep goes on.
    swept: usize,
    started: Instant,
    /// Milliseconds since `started`, wrapping: only differences count.
    now: u32,
    /// When to end, clients or not.
    end: Option<Instant>,
}

impl Shard {
    fn new(timing: Timing) -> io::Result<Self> {
        let poll = Poll::new()?;
        let queue = Arc::new(Queue::new(poll.registry(), WAKER)?);
        let tick = timing.ping_interval / (SWEEPS * TICKS);
        let started = Instant::now();
        Ok(Self {
            poll,
            reader: Arc::new(Arc::clone(&queue)),
            queue,
            rows: Slab::new(),
            views: Slab::new(),
            by_channel: HashMap::new(),
            again: Vec::new(),
            closing: Vec::new(),
            buffer: vec![0; READ_BUFFER],
            timing,
            tick,
            next_tick: started + tick,
            swept: 0,
            started,
            now: 0,
            end: None,
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut commands = Vec::new();
        loop {
            let timeout = match self.again.is_empty() {
                true => self.next_tick.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    tracing::error!(%error, "a shard cannot wait for its sockets");
                    return;
                }
                _ => {}
            }
            let now = Instant::now();
            self.now = millis(now - self.started);
            for event in events.iter().filter(|event| event.token() != WAKER) {
                let slot = event.token().0;
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.read(slot, event.is_read_closed() || event.is_error());
                }
                if event.is_writable() {
                    self.resume(slot);
                }
            }
            for slot in std::mem::take(&mut self.again) {
                self.read(slot, false);
                self.resume(slot);
            }
            self.queue.take(&mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Client(newcomer) => self.adopt(*newcomer),
                    Command::Fresh(view) => self.fan_out(view),
                    Command::Shutdown => self.begin_shutdown(now),
                }
            }
            if now >= self.next_tick {
                self.next_tick = now + self.tick;
                self.sweep();
            }
            if self.end.is_some_and(|end| self.rows.is_empty() || now >= end) {
                return;
            }
        }
    }

    fn adopt(&mut self, newcomer: Newcomer) {
        let Newcomer { socket, mut leftover, client, channels } = newcomer;
        if self.end.is_some() {
            client.terms().metrics.closed("shutdown");
            return;
        }
        let mut socket = mio::net::TcpStream::from_std(socket);
        let slot = self.rows.vacant_key();
        if let Err(error) = self.poll.registry().register(&mut socket, Token(slot), Interest::READABLE) {
            tracing::warn!(%error, "a client's socket cannot be watched");
            client.terms().metrics.closed("io");
            return;
        }
        let mut cursors = Vec::with_capacity(channels.len());
        for (nth, channel) in (0..).zip(&channels) {
            let view = self.view(channel);
            if let Some(channel) = self.views.get_mut(view) {
                cursors.push(channel.subscribe(index(view), Subscriber { slot: index(slot), nth }));
            }
        }
        let cursors = match <[_; 1]>::try_from(cursors) {
            Ok([one]) => Cursors::One(one),
            Err(many) => Cursors::Many(many.into()),
        };
        self.rows.insert(Row { socket, client, cursors, extra: None, touched: self.now, flags: 0, current: 0 });
        if !leftover.is_empty() {
            self.received(slot, &mut leftover);
        }
    }

    /// The view of a channel, attached if this is its first client here.
    fn view(&mut self, channel: &Arc<Channel>) -> usize {
        if let Some(view) = self.by_channel.get(&Arc::as_ptr(channel).addr()) {
            return *view;
        }
        let view = self.views.vacant_key();
        let log = channel.attach(Arc::clone(&self.reader), view);
        self.by_channel.insert(Arc::as_ptr(channel).addr(), view);
        self.views.insert(View { channel: Arc::clone(channel), log, gone: Vec::new(), subscribers: Vec::new() })
    }

    /// Takes in a channel's new chunks and writes them to all who can take them.
    fn fan_out(&mut self, at: usize) {
        let Some(view) = self.views.get_mut(at) else { return };
        view.absorb(&self.reader);
        let oldest = view.log.oldest_seq();
        let mut delivered = 0;
        let (mut held, mut lagged, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for &Subscriber { slot, nth } in &view.subscribers {
            let Some(row) = self.rows.get_mut(slot as usize) else { continue };
            let seq = row.cursors.as_slice().get(usize::from(nth)).map(|cursor| cursor.seq);
            if seq.is_some_and(|seq| seq < oldest) {
                lagged.push(slot as usize);
            } else if !row.is(flag::BEHIND) {
                match row.advance(nth, &view.log, self.now, &mut delivered) {
                    Step::Done => {}
                    step @ (Step::Blocked | Step::Turn) => {
                        row.current = nth;
                        held.push((slot as usize, step));
                    }
                    Step::Gone => gone.push(slot as usize),
                }
            }
        }
        view.channel.metrics.deliveries.inc_by(delivered);
        for (slot, step) in held {
            self.hold(slot, &step);
        }
        for slot in lagged {
            self.close(slot, 1013, "fell off the end of the channel's log", "lagged");
        }
        for slot in gone {
            self.remove(slot, "io");
        }
        if let Some(view) = self.views.get_mut(at) {
            view.gone = Vec::new();
        }
    }

    /// Marks a row as behind, to go on when its socket has room or when it is its turn.
    fn hold(&mut self, slot: usize, step: &Step) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if !row.is(flag::BEHIND) {
            row.flags = (row.flags | flag::BEHIND) & !flag::PINGED;
            row.touched = self.now;
        }
        if *step == Step::Turn {
            self.again.push(slot);
        } else if !row.is(flag::ARMED) {
            row.flags |= flag::ARMED;
            self.watch(slot, Interest::READABLE | Interest::WRITABLE);
        }
    }

    /// Goes on with a row that was behind.
    fn resume(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let mut step = row.flush(self.now);
        let cursors = u16::try_from(row.cursors.as_slice().len()).unwrap_or(u16::MAX);
        for turn in 0..cursors {
            if step != Step::Done {
                break;
            }
            // The half-sent frame first, whichever channel it is of.
            let nth = (row.current + turn) % cursors;
            let view = row.cursors.as_slice().get(usize::from(nth)).map(|cursor| cursor.view as usize);
            let Some(view) = view.and_then(|view| self.views.get(view)) else { continue };
            let mut delivered = 0;
            step = row.advance(nth, &view.log, self.now, &mut delivered);
            view.channel.metrics.deliveries.inc_by(delivered);
            if step != Step::Done {
                row.current = nth;
            }
        }
        match step {
            Step::Done => self.caught_up(slot),
            Step::Gone => self.remove(slot, "io"),
            step => self.hold(slot, &step),
        }
    }

    fn caught_up(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let armed = row.is(flag::ARMED);
        row.flags &= !(flag::BEHIND | flag::ARMED);
        row.touched = self.now;
        row.tidy();
        if row.is(flag::CLOSING) {
            self.close_sent(slot);
        } else if armed {
            self.watch(slot, Interest::READABLE);
        }
    }

    fn watch(&mut self, slot: usize, interest: Interest) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if let Err(error) = self.poll.registry().reregister(&mut row.socket, Token(slot), interest) {
            tracing::warn!(%error, "a client's socket cannot be watched");
            self.remove(slot, "io");
        }
    }

    /// Reads what a client has sent. A short read means there is no more, unless its end was announced.
    fn read(&mut self, slot: usize, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut reads = 0;
        while let Some(row) = self.rows.get_mut(slot) {
            match row.socket.read(&mut buffer) {
                Ok(0) => self.remove(slot, "client"),
                Ok(length) => {
                    self.received(slot, buffer.get_mut(..length).unwrap_or_default());
                    reads += 1;
                    if length < buffer.len() && !to_the_end {
                        break;
                    }
                    if reads == READS_PER_TURN {
                        self.again.push(slot);
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.remove(slot, "io"),
            }
        }
        self.buffer = buffer;
    }

    /// Takes bytes from a client: whole frames now, the rest when it is complete.
    fn received(&mut self, slot: usize, bytes: &mut [u8]) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        let max_message = row.client.terms().max_message;
        let (mut partial, mut assembly) = match &mut row.extra {
            Some(extra) => (std::mem::take(&mut extra.partial), std::mem::take(&mut extra.assembly)),
            None => Default::default(),
        };
        let mut rest = if partial.is_empty() {
            bytes
        } else {
            partial.extend_from_slice(bytes);
            partial.as_mut_slice()
        };
        loop {
            let taken = match assembly.next(rest, max_message) {
                Ok(None) => break,
                Ok(Some((event, taken))) => {
                    if !self.handle(slot, &event) {
                        return;
                    }
                    taken
                }
                Err(violation) => return self.violated(slot, violation),
            };
            rest = rest.get_mut(taken..).unwrap_or_default();
        }
        let Some(row) = self.rows.get_mut(slot) else { return };
        if !rest.is_empty() || !assembly.is_empty() {
            let extra = row.extra();
            extra.partial = rest.to_vec();
            extra.assembly = assembly;
        }
        row.tidy();
    }

    /// Answers one event; false: the client is on its way out, what else it sent does not count.
    fn handle(&mut self, slot: usize, event: &Event<'_>) -> bool {
        let Some(row) = self.rows.get_mut(slot) else { return false };
        match event {
            Event::Message(..) => {
                row.client.terms().metrics.client_messages_dropped.inc();
            }
            Event::Pong => row.flags &= !flag::PINGED,
            Event::Ping(payload) => {
                let mut pong = Vec::with_capacity(2 + payload.len());
                frame::encode(frame::PONG, payload, &mut pong);
                self.send(slot, &pong);
            }
            Event::Close(code) => {
                row.flags |= flag::PEER_CLOSED;
                self.close(slot, code.unwrap_or(1000), "", "client");
            }
            Event::Fragment => {}
        }
        self.rows.get(slot).is_some_and(|row| !row.is(flag::CLOSING))
    }

    fn violated(&mut self, slot: usize, violation: Violation) {
        let reason = match violation {
            Violation::Protocol(_) => "protocol",
            Violation::Utf8 => "utf8",
            Violation::TooLarge => "too_large",
        };
        self.close(slot, violation.close_code(), &violation.to_string(), reason);
    }

    /// Sends a control frame, between two frames.
    fn send(&mut self, slot: usize, control: &[u8]) {
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        let behind = row.is(flag::BEHIND);
        let closing = row.is(flag::CLOSING);
        let out = &mut row.extra().out;
        if out.len() > MAX_QUEUED && !closing {
            return;
        }
        out.extend_from_slice(control);
        if behind {
            return;
        }
        match row.flush(self.now) {
            Step::Done => row.tidy(),
            Step::Gone => self.remove(slot, "io"),
            step => self.hold(slot, &step),
        }
    }

    /// Copies what is left of a half-sent frame in front of whatever else is to be sent.
    fn finish_frame(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let Some(cursor) = row.cursors.as_mut_slice().get_mut(usize::from(row.current)) else { return };
        let Some(view) = self.views.get(cursor.view as usize) else { return };
        let rest = view.rest_of_frame(cursor);
        if rest.is_empty() {
            return;
        }
        row.extra.get_or_insert_default().out.extend_from_slice(rest);
        let mut delivered = 1;
        if cursor.seq >= view.log.oldest_seq() {
            delivered = 0;
            cursor.step(rest.len(), &view.log, &mut delivered);
        }
        view.channel.metrics.deliveries.inc_by(delivered);
    }

    /// Sends a close frame behind whatever is half sent, and nothing more.
    fn close(&mut self, slot: usize, code: u16, text: &str, reason: &'static str) {
        let Some(row) = self.rows.get(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        row.client.terms().metrics.closed(reason);
        self.finish_frame(slot);
        self.unsubscribe(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.flags |= flag::CLOSING;
        row.extra().close_by = self.now.wrapping_add(millis(CLOSE_TIMEOUT));
        self.closing.push(slot);
        self.send(slot, &frame::close(code, text));
        if self.rows.get(slot).is_some_and(|row| !row.is(flag::BEHIND)) {
            self.close_sent(slot);
        }
    }

    /// The close frame is out: what the client still sends is read and dropped until it closes too, or the socket's
    /// reset could overtake the frame.
    fn close_sent(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let ended = row.socket.shutdown(Shutdown::Write).is_err();
        if ended || row.is(flag::PEER_CLOSED) {
            self.remove(slot, "client");
        } else {
            self.watch(slot, Interest::READABLE);
        }
    }

    fn unsubscribe(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let cursors = std::mem::replace(&mut row.cursors, Cursors::none());
        for cursor in cursors.as_slice() {
            let at = cursor.view as usize;
            let Some(view) = self.views.get_mut(at) else { continue };
            view.unsubscribe(cursor.at, &mut self.rows);
            if view.subscribers.is_empty() {
                view.channel.detach(&self.reader);
                self.by_channel.remove(&Arc::as_ptr(&view.channel).addr());
                self.views.remove(at);
            }
        }
    }

    /// Drops a client; `reason` counts unless its closing has been counted.
    fn remove(&mut self, slot: usize, reason: &'static str) {
        self.unsubscribe(slot);
        if let Some(row) = self.rows.try_remove(slot)
            && !row.is(flag::CLOSING)
        {
            row.client.terms().metrics.closed(reason);
        }
    }

    fn begin_shutdown(&mut self, now: Instant) {
        self.end = Some(now + self.timing.shutdown_timeout);
        let slots: Vec<usize> = self.rows.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.close(slot, 1001, "the relay is shutting down", "shutdown");
        }
    }

    /// Liveness, a part of the table at a time.
    fn sweep(&mut self) {
        for slot in std::mem::take(&mut self.closing) {
            let Some(row) = self.rows.get(slot).filter(|row| row.is(flag::CLOSING)) else { continue };
            let close_by = row.extra.as_ref().map_or(self.now, |extra| extra.close_by);
            if self.now.wrapping_sub(close_by) < u32::MAX / 2 {
                self.remove(slot, "client");
            } else {
                self.closing.push(slot);
            }
        }
        let part = self.rows.capacity() / TICKS as usize + 1;
        let end = self.swept + part;
        for slot in self.swept..end {
            self.check(slot);
        }
        self.swept = if end >= self.rows.capacity() { 0 } else { end };
    }

    fn check(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        let age = self.now.wrapping_sub(row.touched);
        if row.is(flag::BEHIND) {
            if age >= millis(self.timing.stall_timeout) {
                self.remove(slot, "stalled");
            }
        } else if age >= millis(self.timing.ping_interval) {
            if row.is(flag::PINGED) {
                self.remove(slot, "no_pong");
            } else {
                row.flags |= flag::PINGED;
                row.touched = self.now;
                let mut ping = Vec::with_capacity(2);
                frame::encode(frame::PING, &[], &mut ping);
                self.send(slot, &ping);
            }
        }
    }
}

/// Wraps after 49 days: only differences are used.
#[allow(clippy::cast_possible_truncation)]
fn millis(duration: Duration) -> u32 {
    duration.as_millis() as u32
}

/// Slots are bounded by file descriptors, far below 2³².
fn index(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}
