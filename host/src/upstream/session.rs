//! One connection to a partner, while it lasts.

use std::{convert::Infallible, io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{
    tungstenite,
    tungstenite::{
        Message,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use wire::{Frame, Kind};

use crate::{
    metrics::UpstreamMetrics,
    shutdown::Stop,
    upstream::{Need, Outbound, Sink, connect::PartnerSocket, last_read::LastRead},
};

/// Pings go out this many times within the idle limit: one lost packet is no lost partner.
const PINGS_PER_IDLE: u32 = 3;
/// Messages taken as one burst if they are already there.
const BURST_MESSAGES: usize = 256;
/// Payload bytes after which a burst is passed on.
const BURST_BYTES: usize = 256 << 10;
/// How long the partner may take no frame before the connection counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the close frame and the partner's answer may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// The most bytes that are read and dropped meanwhile.
const FAREWELL_BYTES: u64 = 1 << 20;

/// How long the partner has been silent, and how long it may be.
pub struct Silence {
    pub last_read: LastRead,
    pub limit: Duration,
}

/// A connection, and what it works with.
pub struct Session<'u> {
    pub socket: PartnerSocket,
    pub silence: Silence,
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
    Closed(Option<CloseFrame>),
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
    #[error("{0}")]
    Socket(#[from] tungstenite::Error),
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
            Self::Socket(error) => reason(error),
        }
    }
}

/// The metric's label for an error of the WebSocket library.
pub fn reason(error: &tungstenite::Error) -> &'static str {
    use tungstenite::Error;
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => "closed",
        Error::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset",
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => "reset",
        Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => "memory",
        Error::Io(_) => "io",
        Error::Tls(_) => "tls",
        Error::Http(_) => "http_status",
        Error::Capacity(CapacityError::MessageTooLong { .. }) => "too_large",
        _ => "protocol",
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
        let Self { socket, silence, sink, metrics, outbound, need, stop } = self;
        let opening = tokio::select! {
            opening = sink.opening(&outbound.sender) => opening.ok_or(Lost::Filter)?,
            () = stop.wait() => return Err(Lost::Stopped),
        };
        for frame in opening {
            send(socket, message(frame)).await?;
        }
        let period = silence.limit / PINGS_PER_IDLE;
        let mut ping = interval_at(Instant::now() + period, period);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unneeded = pin!(need.ends());
        loop {
            let first = tokio::select! {
                message = socket.next() => message,
                () = stop.wait() => return Err(Lost::Stopped),
                () = &mut unneeded => return Err(Lost::Unneeded),
                Some(frame) = outbound.frames.recv() => {
                    send(socket, message(frame.frame)).await?;
                    continue;
                }
                _ = ping.tick() => {
                    let idle = silence.last_read.elapsed();
                    if idle >= silence.limit {
                        return Err(Lost::Idle(idle));
                    }
                    send(socket, Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            let (burst, end) = take_burst(socket, first);
            if !burst.is_empty() {
                metrics.messages.inc_by(burst.len() as u64);
                metrics.bytes.inc_by(burst.iter().map(|frame| frame.bytes.len() as u64).sum());
                // From here on the burst is the queue's, or the channel's.
                silence.last_read.messages_taken();
                if !sink.accept(burst).await {
                    return Err(Lost::Memory);
                }
            }
            // What the partner sent while this waited for the filter is yet to be read.
            silence.last_read.messages_taken();
            if let Some(lost) = end {
                return Err(lost);
            }
        }
    }
}

/// Takes all that has arrived already, so that nobody is woken for each message. Returns it, and the end if that came.
fn take_burst(socket: &mut PartnerSocket, first: Option<tungstenite::Result<Message>>) -> (Vec<Frame>, Option<Lost>) {
    let mut burst = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Some(Ok(Message::Text(text))) => {
                bytes += text.len();
                burst.push(Frame { kind: Kind::Text, bytes: text.into() });
            }
            Some(Ok(Message::Binary(payload))) => {
                bytes += payload.len();
                burst.push(Frame { kind: Kind::Binary, bytes: payload });
            }
            Some(Ok(Message::Close(frame))) => return (burst, Some(Lost::Closed(frame))),
            Some(Ok(_)) => {}
            Some(Err(error)) => return (burst, Some(error.into())),
            None => return (burst, Some(Lost::Closed(None))),
        }
        if burst.len() >= BURST_MESSAGES || bytes >= BURST_BYTES {
            break;
        }
        next = socket.next().now_or_never();
    }
    (burst, None)
}

async fn send(socket: &mut PartnerSocket, message: Message) -> Result<(), Lost> {
    timeout(SEND_TIMEOUT, socket.send(message)).await.map_err(|_| Lost::Stuck)??;
    Ok(())
}

fn message(frame: Frame) -> Message {
    match frame.kind {
        // Text is checked where it enters. What is not UTF-8 all the same goes out as binary.
        Kind::Text => match frame.bytes.clone().try_into() {
            Ok(text) => Message::Text(text),
            Err(_) => Message::Binary(frame.bytes),
        },
        Kind::Binary => Message::Binary(frame.bytes),
    }
}

/// Ends the connection as RFC 6455 section 7 says, if the partner may still be listening.
async fn farewell(socket: &mut PartnerSocket, lost: &Lost) {
    let code = match lost {
        Lost::Idle(_) | Lost::Stuck => return,
        // The library has the answer ready: closing sends it.
        Lost::Closed(_) | Lost::Unneeded => CloseCode::Normal,
        Lost::Stopped => CloseCode::Away,
        Lost::Filter => CloseCode::Error,
        Lost::Memory => CloseCode::Again,
        Lost::Socket(tungstenite::Error::Capacity(_)) => CloseCode::Size,
        Lost::Socket(tungstenite::Error::Protocol(_)) => CloseCode::Protocol,
        Lost::Socket(tungstenite::Error::Utf8(_)) => CloseCode::Invalid,
        Lost::Socket(_) => return,
    };
    let goodbye = async {
        socket.close(Some(CloseFrame { code, reason: "".into() })).await?;
        // A socket that is closed over unread bytes is reset, and the reset may overtake the close frame. So what the
        // partner still sends is read and dropped.
        let stream = socket.get_mut();
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
        Ok::<_, tungstenite::Error>(())
    };
    // The connection is lost in any case.
    let _ = timeout(FAREWELL_TIMEOUT, goodbye).await;
}

fn describe(frame: Option<&CloseFrame>) -> String {
    frame.map_or_else(String::new, |frame| format!(" with code {} {:?}", frame.code, frame.reason.as_str()))
}
