//! One connection to a partner, while it lasts.

use std::{convert::Infallible, io, pin::pin, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use wire::{Frame, message::Received};

use crate::{
    metrics::UpstreamMetrics,
    shutdown::Stop,
    upstream::{
        Need, Outbound, Sink,
        socket::{PartnerSocket, SocketError},
    },
};

/// Pings go out this many times within the idle limit: one lost packet is no lost partner.
const PINGS_PER_IDLE: u32 = 3;
/// Messages taken as one burst if they are already there.
const BURST_MESSAGES: usize = 256;
/// Frames of all kinds that a burst is made of.
const BURST_FRAMES: usize = 1024;
/// Payload bytes after which a burst is passed on.
const BURST_BYTES: usize = 256 << 10;
/// How long the partner may take no frame before the connection counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the close frame and the partner's answer may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Close codes, RFC 6455 section 7.4.1.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const INTERNAL_ERROR: u16 = 1011;
const TRY_AGAIN_LATER: u16 = 1013;

/// A connection, and what it works with.
pub struct Session<'u> {
    pub socket: PartnerSocket,
    /// How long the partner may be silent.
    pub idle_timeout: Duration,
    pub sink: &'u Sink,
    pub metrics: &'u UpstreamMetrics,
    pub outbound: &'u mut Outbound,
    pub need: &'u mut Need,
    pub stop: &'u mut Stop,
}

/// How a connection was lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("closed by the partner{}", describe(.0.as_ref()))]
    Closed(Option<(u16, String)>),
    #[error("nothing received for {:.1} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("the partner takes no frames")]
    Stuck,
    #[error("the filter's on-open failed")]
    Filter,
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
            Self::Stuck => "timeout",
            Self::Filter => "filter",
            Self::Memory => "memory",
            Self::Stopped => "shutdown",
            Self::Unneeded => "unneeded",
            Self::Socket(error) => error.reason(),
        }
    }
}

impl Session<'_> {
    /// Runs the connection to its end: first what the filter wants sent, then message after message.
    pub async fn run(mut self) -> Lost {
        match self.relay().await {
            Ok(never) => match never {},
            Err(lost) => {
                farewell(&mut self.socket, &lost).await;
                lost
            }
        }
    }

    async fn relay(&mut self) -> Result<Infallible, Lost> {
        let Self { socket, idle_timeout, sink, metrics, outbound, need, stop } = self;
        let opening = tokio::select! {
            opening = sink.opening(&outbound.sender) => opening.ok_or(Lost::Filter)?,
            () = stop.wait() => return Err(Lost::Stopped),
        };
        for frame in opening {
            sent(socket.send(&frame)).await?;
        }
        let period = *idle_timeout / PINGS_PER_IDLE;
        let mut ping = interval_at(Instant::now() + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unneeded = pin!(need.ends());
        loop {
            let first = tokio::select! {
                received = socket.next() => received,
                () = stop.wait() => return Err(Lost::Stopped),
                () = &mut unneeded => return Err(Lost::Unneeded),
                Some(frame) = outbound.frames.recv() => {
                    sent(socket.send(&frame.frame)).await?;
                    continue;
                }
                _ = ping.tick() => {
                    let idle = socket.last_read().elapsed();
                    if idle >= *idle_timeout {
                        return Err(Lost::Idle(idle));
                    }
                    sent(socket.ping()).await?;
                    continue;
                }
            };
            let Burst { messages, ping, end } = Burst::take(socket, first);
            let ponged = match ping {
                Some(payload) => sent(socket.pong(&payload)).await,
                None => Ok(()),
            };
            if !messages.is_empty() {
                metrics.messages.inc_by(messages.len() as u64);
                metrics.bytes.inc_by(messages.iter().map(|frame| frame.bytes.len() as u64).sum());
                if !sink.accept(messages).await {
                    return Err(Lost::Memory);
                }
                // What the partner sent while this waited for the filter is yet to be read.
                socket.was_not_read();
            }
            if let Some(lost) = end {
                return Err(lost);
            }
            // What came before is passed on all the same.
            ponged?;
        }
    }
}

/// What has arrived already, so that nobody is woken for each message.
#[derive(Default)]
struct Burst {
    messages: Vec<Frame>,
    /// The last ping, which is the only one that has to be answered (RFC 6455 section 5.5.3).
    ping: Option<Bytes>,
    end: Option<Lost>,
}

impl Burst {
    fn take(socket: &mut PartnerSocket, first: Result<Received, SocketError>) -> Self {
        let mut burst = Self::default();
        let (mut frames, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(received) = next {
            frames += 1;
            match received {
                Ok(Received::Message(frame)) => {
                    bytes += frame.bytes.len();
                    burst.messages.push(frame);
                }
                Ok(Received::Ping(payload)) => burst.ping = Some(payload),
                Ok(Received::Pong | Received::Fragment) => {}
                Ok(Received::Close(frame)) => burst.end = Some(Lost::Closed(frame)),
                Err(error) => burst.end = Some(error.into()),
            }
            let is_full = frames >= BURST_FRAMES || burst.messages.len() >= BURST_MESSAGES || bytes >= BURST_BYTES;
            if is_full || burst.end.is_some() {
                break;
            }
            next = socket.next_now();
        }
        burst
    }
}

/// Waits until the partner has taken a frame.
async fn sent(sending: impl Future<Output = io::Result<()>>) -> Result<(), Lost> {
    timeout(SEND_TIMEOUT, sending).await.map_err(|_| Lost::Stuck)?.map_err(SocketError::from)?;
    Ok(())
}

/// Ends the connection as RFC 6455 section 7 says, if the partner may still be listening.
async fn farewell(socket: &mut PartnerSocket, lost: &Lost) {
    let code = match lost {
        Lost::Idle(_) | Lost::Stuck => return,
        // The answer has the partner's own code (section 5.5.1).
        Lost::Closed(frame) => frame.as_ref().map(|(code, _)| *code),
        Lost::Unneeded => Some(NORMAL),
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
