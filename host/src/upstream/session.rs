//! One connection to a partner, while it lasts.
//!
//! Whatever becomes of its messages, the connection goes on: pings are answered, frames are sent. If messages cannot be
//! passed on yet, the socket is read no further. What it says about itself then names what it waits for.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use config::UpstreamConfig;
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use wire::{Frame, message::Received};

use crate::{
    metrics::UpstreamMetrics,
    shutdown::Stop,
    upstream::{
        Need, UpstreamLog,
        burst::Burst,
        data_timeout::DataTimeout,
        handle::{Handle, Line, OutboundFrame, Wish},
        sink::{Passed, Sink, Wait},
        socket::{PartnerSocket, SocketError},
        state::{State, Status},
        turn::Turn,
        waiting::{Held, Pressure},
    },
    usage,
    usage::Usage,
};

/// Pings go out this many times within the idle limit: one lost packet is no lost partner.
const PINGS_PER_IDLE: u32 = 3;
/// How long the partner may take no frame before the connection counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the close frame and the partner's answer may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long messages wait for memory before the connection is given up.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a message that takes more than a turn to be passed on.
const LONG: usize = 512 << 10;

/// A tick that is later than this shows that the process was stopped.
const STOPPED: Duration = Duration::from_secs(1);

/// Close codes, RFC 6455 section 7.4.1.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const INTERNAL_ERROR: u16 = 1011;
const TRY_AGAIN_LATER: u16 = 1013;

/// A connection, and what it works with.
pub struct Session<'u> {
    pub socket: PartnerSocket,
    /// Which of the upstream's connections it is.
    pub number: u64,
    pub config: &'u UpstreamConfig,
    pub sink: &'u Sink,
    pub metrics: &'u UpstreamMetrics,
    pub handle: &'u Arc<Handle>,
    pub log: &'u UpstreamLog,
    /// Has the tenant's turn in reading.
    pub read_turn: &'u Semaphore,
    pub usage: &'u Usage,
    pub need: &'u mut Need,
    pub stop: &'u mut Stop,
    /// Whether a message was overdue on the connection before, and has not come since.
    pub stale: &'u mut bool,
}

/// How a connection was lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("closed by the partner{}", describe(.0.as_ref()))]
    Closed(Option<(u16, String)>),
    #[error("nothing received for {:.1} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("no message for {:.1} s", .0.as_secs_f64())]
    Stale(Duration),
    #[error("the partner takes no frames")]
    Stuck,
    /// The partner could not wait while it was not read.
    #[error("{0}; the filter is slower than the partner, which was not read in time")]
    Behind(Box<Lost>),
    #[error("the filter's on-open failed")]
    Filter,
    #[error("a component asks for another connection: {0:?}")]
    Asked(String),
    #[error("the tenant's memory is full")]
    Memory,
    #[error("the relay is shutting down")]
    Stopped,
    #[error("no client needs it")]
    Unneeded,
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl Lost {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Idle(_) => "idle",
            Self::Stale(_) => "stale",
            Self::Stuck => "timeout",
            Self::Behind(_) => "slow_filter",
            Self::Filter => "filter",
            Self::Asked(_) => "asked",
            Self::Memory => "memory",
            Self::Stopped => "shutdown",
            Self::Unneeded => "unneeded",
            Self::Socket(error) => error.reason(),
        }
    }

    /// Whether the partner has ended it, or takes no part any more.
    fn is_the_partners(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Stuck | Self::Socket(SocketError::Ended | SocketError::Io(_)))
    }
}

/// What a connection has to see to next.
enum Event {
    /// What the filter wants sent first.
    Opened(Vec<Frame>),
    Received(Result<Received, SocketError>),
    Send(OutboundFrame),
    /// A ping is due, and was at this time.
    Ping(Instant),
    /// A message may be overdue.
    Overdue,
    /// Messages that were not taken may be taken now.
    Ready,
    /// Time to look whether the connection still waits.
    Look,
}

impl Session<'_> {
    /// Runs the connection to its end: first what the filter wants sent, then message after message.
    pub async fn run(mut self) -> Lost {
        let (mut held, mut pressure) = (None, Pressure::new(self.metrics));
        let lost = match self.relay(&mut held, &mut pressure).await {
            Ok(never) => match never {},
            Err(lost) if lost.is_the_partners() && pressure.is_the_filters() => Lost::Behind(lost.into()),
            Err(lost) => lost,
        };
        // From here on it takes no more frames.
        self.handle.close();
        self.handle.set(match lost {
            Lost::Unneeded => Status::new(State::Resting),
            _ => Status::because(State::Connecting, lost.to_string()),
        });
        if let Some(Held { messages, .. }) = held {
            self.sink.force(self.number, messages).await;
        }
        farewell(&mut self.socket, &lost).await;
        lost
    }

    /// `held` gets the messages that could not be passed on yet.
    async fn relay(&mut self, held: &mut Option<Held>, pressure: &mut Pressure<'_>) -> Result<Infallible, Lost> {
        let Self { socket, number, config, sink, metrics, handle, log, read_turn, usage: used, need, stop, stale } =
            self;
        let number = *number;
        let (line, mut outbound) = Line::new(number);
        let mut opening = pin!(sink.open(line, handle, status(**stale, pressure)));
        let mut is_open = false;
        let period = config.idle_timeout / PINGS_PER_IDLE;
        let mut ping = interval_at(Instant::now() + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unneeded = pin!(need.ends());
        let mut data = DataTimeout::new(handle.expected());
        let mut turn = Turn::new(read_turn, used);
        let (mut paused, mut counted) = (None, 0);
        loop {
            let event = tokio::select! {
                opened = &mut opening, if !is_open => Event::Opened(opened.ok_or(Lost::Filter)?),
                received = read(socket, &mut turn, &mut paused, used), if held.is_none() => Event::Received(received),
                () = Held::ready(held.as_ref(), sink), if held.is_some() => Event::Ready,
                () = stop.wait() => return Err(Lost::Stopped),
                () = &mut unneeded => return Err(Lost::Unneeded),
                wish = outbound.next(is_open) => match wish {
                    Wish::Send(frame) => Event::Send(frame),
                    Wish::Reconnect(reason) => return Err(Lost::Asked(reason)),
                },
                due = ping.tick() => Event::Ping(due),
                () = data.look(), if is_open && held.is_none() => Event::Overdue,
                () = pressure.look() => Event::Look,
            };
            if !matches!(event, Event::Received(_)) {
                turn.end();
            }
            let mut overdue = None;
            let first = match event {
                Event::Received(received) => received,
                Event::Opened(first) => {
                    for frame in first {
                        used.sent(frame.bytes.len(), Instant::now().into_std());
                        sent(socket.send(&frame)).await?;
                    }
                    is_open = true;
                    data.restart(Instant::now());
                    handle.set(status(**stale, pressure));
                    continue;
                }
                Event::Send(frame) => {
                    used.sent(frame.frame.bytes.len(), Instant::now().into_std());
                    sent(socket.send(&frame.frame)).await?;
                    continue;
                }
                Event::Ping(due) => {
                    sent(socket.ping()).await?;
                    if due.elapsed() >= STOPPED {
                        // The process was stopped, and could not hear anything.
                        socket.was_not_read();
                        data.restart(Instant::now());
                    }
                    let silent = due.saturating_duration_since(socket.last_read());
                    // Nor can one that does not listen.
                    if held.is_some() || silent < config.idle_timeout {
                        continue;
                    }
                    match what_came(socket) {
                        Came::Something(received) => received,
                        Came::Bytes => continue,
                        Came::Nothing => return Err(Lost::Idle(silent)),
                    }
                }
                Event::Overdue => {
                    let Some(time) = data.overdue(socket.last_read()) else {
                        if !data.is_expected() && std::mem::take(*stale) {
                            handle.set(status(false, pressure));
                        }
                        continue;
                    };
                    overdue = Some(time);
                    match what_came(socket) {
                        Came::Something(received) => received,
                        // Goes the same way as what is no message.
                        Came::Bytes | Came::Nothing => Ok(Received::Fragment),
                    }
                }
                Event::Ready => {
                    let Some(Held { messages, wait, since, offered }) = held else { continue };
                    *offered = Instant::now();
                    match sink.offer(number, messages).await {
                        Ok(Passed { garbage, .. }) => {
                            *held = None;
                            pressure.ends();
                            drop(garbage);
                            // What the partner sent meanwhile is yet to be read.
                            socket.was_not_read();
                            data.restart(Instant::now());
                        }
                        Err(Wait::Memory) if *wait == Wait::Memory && since.elapsed() >= MEMORY_PATIENCE => {
                            return Err(Lost::Memory);
                        }
                        Err(now) if now != *wait => {
                            (*wait, *since) = (now, Instant::now());
                            pressure.begins(now);
                        }
                        Err(_) => {}
                    }
                    continue;
                }
                Event::Look => {
                    if pressure.look_again(log) && is_open {
                        handle.set_reason(pressure.reason());
                    }
                    continue;
                }
            };
            let Burst { mut messages, pings, received, end } = Burst::take(socket, first);
            // With all that was read for it, also before it began.
            let bytes = socket.bytes_read() - std::mem::replace(&mut counted, socket.bytes_read());
            let received = usage::Received { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), ..received };
            paused = used.received(received, Instant::now().into_std()).map(|until| (until, received));
            let ponged = match &*pings {
                [] => Ok(()),
                pings => {
                    turn.end();
                    sent(socket.pong(pings)).await
                }
            };
            let is_silent = messages.is_empty();
            if !is_silent {
                metrics.messages.inc_by(messages.len() as u64);
                metrics.bytes.inc_by(messages.iter().map(|frame| frame.bytes.len() as u64).sum());
                data.restart(socket.last_read());
                if std::mem::take(*stale) && is_open {
                    handle.set(status(false, pressure));
                }
                if messages.iter().any(|message| message.bytes.len() >= LONG) {
                    // It is framed a part at a time, and others have their turns meanwhile.
                    turn.end();
                }
                match sink.offer(number, &mut messages).await {
                    Ok(Passed { dropped, garbage }) => {
                        if dropped.is_some_and(|why| pressure.drops(why, log)) && is_open {
                            handle.set_reason(pressure.reason());
                        }
                        for frames in garbage {
                            drop(frames);
                            turn.go_on().await;
                        }
                    }
                    Err(wait) => {
                        pressure.begins(wait);
                        *held = Some(Held::new(messages, wait));
                        turn.end();
                    }
                }
            }
            if let Some(lost) = end {
                return Err(lost);
            }
            if let Some(time) = overdue.filter(|_| is_silent) {
                **stale = true;
                handle.set(status(true, pressure));
                return Err(Lost::Stale(time));
            }
            // What came before is passed on all the same.
            ponged?;
            turn.go_on().await;
        }
    }
}

/// Reads what comes next, when it is this upstream's turn, and its tenant has not received as much as it may. Nothing
/// is lost if the future is dropped.
async fn read(
    socket: &mut PartnerSocket,
    turn: &mut Turn<'_>,
    paused: &mut Option<(std::time::Instant, usage::Received)>,
    used: &Usage,
) -> Result<Received, SocketError> {
    while let Some((until, received)) = *paused {
        turn.end();
        sleep_until(until.into()).await;
        let again = used.wait_to_receive(received, std::time::Instant::now());
        *paused = again.map(|until| (until, received));
    }
    loop {
        turn.begin().await;
        if let Some(received) = socket.next_now() {
            return received;
        }
        turn.end();
        socket.readable().await?;
    }
}

/// What an open connection shows of itself.
fn status(stale: bool, pressure: &Pressure<'_>) -> Status {
    match stale {
        true => Status::because(State::Stale, "no message has come for longer than is expected"),
        false => Status { reason: pressure.reason(), ..Status::new(State::Live) },
    }
}

/// What lies in the socket when a time is over.
enum Came {
    Something(Result<Received, SocketError>),
    /// A part of a frame.
    Bytes,
    Nothing,
}

fn what_came(socket: &mut PartnerSocket) -> Came {
    let before = socket.bytes_read();
    match socket.next_now() {
        Some(received) => Came::Something(received),
        None if socket.bytes_read() != before => Came::Bytes,
        None => Came::Nothing,
    }
}

/// Waits until the partner has taken a frame.
async fn sent(sending: impl Future<Output = io::Result<()>>) -> Result<(), Lost> {
    timeout(SEND_TIMEOUT, sending).await.map_err(|_| Lost::Stuck)?.map_err(SocketError::from)?;
    Ok(())
}

/// Ends the connection as RFC 6455 section 7 says, if the partner may still be listening.
async fn farewell(socket: &mut PartnerSocket, lost: &Lost) {
    let lost = if let Lost::Behind(lost) = lost { lost } else { lost };
    let code = match lost {
        Lost::Idle(_) | Lost::Stuck | Lost::Behind(_) => return,
        // The answer has the partner's own code (section 5.5.1).
        Lost::Closed(frame) => frame.as_ref().map(|(code, _)| *code),
        Lost::Unneeded | Lost::Stale(_) | Lost::Asked(_) => Some(NORMAL),
        Lost::Stopped => Some(GOING_AWAY),
        Lost::Filter => Some(INTERNAL_ERROR),
        Lost::Memory | Lost::Socket(SocketError::Memory) => Some(TRY_AGAIN_LATER),
        Lost::Socket(SocketError::Violation(violation)) => Some(violation.close_code()),
        Lost::Socket(SocketError::Ended | SocketError::Io(_)) => return,
    };
    // The connection is lost in any case.
    let _ = timeout(FAREWELL_TIMEOUT, socket.close(code)).await;
}

fn describe(frame: Option<&(u16, String)>) -> String {
    frame.map_or_else(String::new, |(code, reason)| format!(" with code {code} {reason:?}"))
}
