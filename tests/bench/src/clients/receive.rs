//! Clients take messages as fast as they come.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use mio::{Events, Poll};

use super::{
    centrifuge::{self, Reply},
    connect::Client,
    door::Door,
    events,
    histogram::Histogram,
    order::Came,
    recorded::Recorded,
    report::{Part, Received},
};
use crate::{
    clock,
    failure::{Context, Failure},
    frame::{self, Frame},
    message,
    recording::Recording,
};

const EVENTS: usize = 1024;
/// Most bytes of one read: few enough to stay in a core's own cache.
const BUFFER_BYTES: usize = 64 * 1024;
const TICK: Duration = Duration::from_millis(50);
/// After this many ticks without a message, the missing ones count as missed. It is longer before the first message,
/// since the feed may not play yet.
const QUIET: u32 = 5_000 / 50;
const QUIET_BEFORE: u32 = 30_000 / 50;
/// How many ticks to look for messages that come twice, once all have come.
const AFTER: u32 = 200 / 50;

/// Reads until all clients that read have everything, or nothing has come for a while.
pub fn receive(
    poll: &mut Poll,
    clients: &mut [Client],
    mut receiver: Receiver,
) -> Result<(Received, Vec<Part>), Failure> {
    // Epoll does not report again what came before.
    for client in clients.iter_mut().filter(|client| client.reads) {
        receiver.read(client)?;
    }
    let reading = clients.iter().filter(|client| client.reads).count() as u64;
    let expected = u64::from(receiver.messages) * reading;
    let mut events = Events::with_capacity(EVENTS);
    let mut quiet = 0;
    loop {
        poll.poll(&mut events, Some(TICK)).context("epoll")?;
        quiet = if events.is_empty() { quiet + 1 } else { 0 };
        for event in &events {
            if let Some(client) = clients.get_mut(event.token().0).filter(|client| client.reads) {
                receiver.read(client)?;
            }
        }
        let enough = match receiver.deliveries {
            0 => QUIET_BEFORE,
            deliveries if deliveries < expected => QUIET,
            _ => AFTER,
        };
        if quiet >= enough || receiver.closed == reading {
            return Ok((receiver.report(clients), receiver.parts()));
        }
    }
}

pub struct Receiver {
    messages: u32,
    buffer: Vec<u8>,
    /// When each message was sent; 0: no client has got it yet. The first client that gets it reads the time from the
    /// message, the others need not.
    sent: Vec<u64>,
    content: Content,
    /// One for each part. Nearly all runs have one part.
    latencies: Vec<Histogram>,
    pub deliveries: u64,
    pub again: u64,
    pub late: u64,
    pub closed: u64,
    bytes: u64,
    last: u64,
}

/// The kind of the messages, and how their numbers are found.
enum Content {
    /// Messages of `message`. All have one shape, which is known from the first.
    Alike(Option<Shape>),
    Recorded(Box<Recorded>),
}

#[derive(Clone, Copy)]
struct Shape {
    length: usize,
    stamp: usize,
}

impl Receiver {
    pub fn new(messages: u32) -> Self {
        Self::of(messages, Content::Alike(None))
    }

    pub fn of_recording(messages: u32, recording: Recording) -> Self {
        Self::of(messages, Content::Recorded(Box::new(Recorded::new(messages, recording))))
    }

    /// Splits the messages into equal parts.
    pub fn in_parts(mut self, parts: usize) -> Self {
        self.latencies.resize_with(parts.max(1), Histogram::new);
        self
    }

    fn of(messages: u32, content: Content) -> Self {
        Self {
            messages,
            buffer: vec![0; BUFFER_BYTES],
            sent: vec![0; messages as usize],
            content,
            latencies: vec![Histogram::new()],
            deliveries: 0,
            again: 0,
            late: 0,
            closed: 0,
            bytes: 0,
            last: 0,
        }
    }

    /// Takes messages that came together with a handshake.
    pub fn begin(&mut self, client: &mut Client) -> Result<(), Failure> {
        let bytes = std::mem::take(&mut client.partial);
        client.partial = self.take(client, &bytes)?.to_vec();
        Ok(())
    }

    /// Reads until the socket has no more.
    pub fn read(&mut self, client: &mut Client) -> Result<(), Failure> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.read_with(client, &mut buffer);
        self.buffer = buffer;
        outcome
    }

    fn read_with(&mut self, client: &mut Client, buffer: &mut [u8]) -> Result<(), Failure> {
        loop {
            let kept = client.partial.len();
            let (head, room) = buffer.split_at_mut_checked(kept).context("a message longer than any that was sent")?;
            head.copy_from_slice(&client.partial);
            let space = room.len();
            let read = match client.socket.read(room) {
                Ok(read @ 1..) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(0) | Err(_) => {
                    self.closed += u64::from(!std::mem::replace(&mut client.closed, true));
                    return Ok(());
                }
            };
            self.bytes += read as u64;
            let rest = self.take(client, buffer.get(..kept + read).unwrap_or_default())?;
            client.partial.clear();
            client.partial.extend_from_slice(rest);
            if read < space {
                return Ok(());
            }
        }
    }

    /// Checks the whole messages at the start of `bytes`. Returns the rest.
    fn take<'a>(&mut self, client: &mut Client, bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        let now = clock::now();
        self.last = now;
        match client.door {
            Door::WebSocket | Door::Centrifuge => self.take_frames(client, bytes, now),
            Door::Events => self.take_events(client, bytes, now),
        }
    }

    fn take_frames<'a>(&mut self, client: &mut Client, mut bytes: &'a [u8], now: u64) -> Result<&'a [u8], Failure> {
        while let Some((frame, rest)) = frame::split(bytes) {
            bytes = rest;
            match frame.first {
                frame::TEXT if client.door == Door::Centrifuge => self.take_replies(client, frame.payload, now)?,
                frame::TEXT | frame::COMPRESSED_TEXT => self.message(client, &frame, now)?,
                frame::PING => answer(client, frame.payload),
                frame::CLOSE => client.close_code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
                // Pongs.
                first if first & frame::CONTROL != 0 => {}
                first => return Err(Failure::new(format!("a frame that begins with {first:#x}"))),
            }
        }
        Ok(bytes)
    }

    /// Takes the replies of the Centrifuge protocol that are in one frame.
    fn take_replies(&mut self, client: &mut Client, mut text: &[u8], now: u64) -> Result<(), Failure> {
        while !text.is_empty() {
            let strange = || format!("an unexpected reply: {:?}", String::from_utf8_lossy(text));
            let (reply, rest) = centrifuge::split(text, self.length()).with_context(strange)?;
            match reply {
                Reply::Message(payload) => self.message(client, &framed(payload), now)?,
                // A connection that has ended is noticed when it is read.
                Reply::Ping => drop(client.socket.write_all(&frame::masked_text(centrifuge::PING)?)),
            }
            text = rest;
        }
        Ok(())
    }

    fn take_events<'a>(&mut self, client: &mut Client, mut bytes: &'a [u8], now: u64) -> Result<&'a [u8], Failure> {
        while let Some((payload, rest)) = events::split(bytes, self.length()) {
            if let Some(payload) = payload {
                self.message(client, &framed(payload), now)?;
            }
            bytes = rest;
        }
        Ok(bytes)
    }

    /// The length of every message. 0: they differ, or it is not known yet.
    fn length(&self) -> usize {
        match &self.content {
            Content::Alike(Some(shape)) => shape.length,
            Content::Alike(None) | Content::Recorded(_) => 0,
        }
    }

    fn message(&mut self, client: &mut Client, frame: &Frame<'_>, now: u64) -> Result<(), Failure> {
        let strange = || format!("no message of the feed: {:?}", String::from_utf8_lossy(frame.payload));
        let number = match &mut self.content {
            Content::Alike(shape) => alike(shape, frame, &mut self.sent),
            Content::Recorded(recorded) => recorded.take(frame, client.order.next(), &mut self.sent),
        };
        let number = number.with_context(strange)?;
        let sent = *self.sent.get(number as usize).with_context(strange)?;
        let latency = now.saturating_sub(sent);
        match client.order.came(number) {
            Came::InOrder => {}
            Came::Late => self.late += 1,
            Came::Again => {
                self.again += 1;
                return Ok(());
            }
        }
        if let Content::Recorded(recorded) = &mut self.content {
            recorded.delivered(frame, number);
        }
        self.deliveries += 1;
        match self.latencies.as_mut_slice() {
            [all] => all.add(latency),
            parts => {
                let size = (self.messages as usize).div_ceil(parts.len()).max(1);
                parts.get_mut(number as usize / size).with_context(strange)?.add(latency);
            }
        }
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        let [_, _, ..] = self.latencies.as_slice() else { return Vec::new() };
        let milliseconds = |part: &Histogram, share| part.quantile(share) as f64 / 1e6;
        let part = |part| Part {
            deliveries: Histogram::count(part),
            p50_ms: milliseconds(part, 0.5),
            p99_ms: milliseconds(part, 0.99),
        };
        self.latencies.iter().map(part).collect()
    }

    fn report(&self, clients: &[Client]) -> Received {
        let first = self.sent.iter().copied().filter(|sent| *sent > 0).min().unwrap_or(self.last);
        let mut all = Histogram::new();
        self.latencies.iter().for_each(|part| all.join(part));
        let milliseconds = |share| all.quantile(share) as f64 / 1e6;
        let recorded = match &self.content {
            Content::Alike(_) => None,
            Content::Recorded(recorded) => Some(recorded),
        };
        Received {
            deliveries: self.deliveries,
            missed: clients.iter().filter(|client| client.reads).map(|client| client.order.missed(self.messages)).sum(),
            again: self.again,
            late: self.late,
            closed: self.closed,
            seconds: self.last.saturating_sub(first) as f64 / 1e9,
            p50_ms: milliseconds(0.5),
            p99_ms: milliseconds(0.99),
            p999_ms: milliseconds(0.999),
            bytes: self.bytes,
            payload_bytes: recorded.map_or(0, |recorded| recorded.payload_bytes),
            compressed: recorded.map_or(0, |recorded| recorded.compressed),
            compared: recorded.map_or(0, |recorded| recorded.compared),
        }
    }
}

/// The number of a message of `message`. The first client that reads a message takes the time when it was sent.
fn alike(shape: &mut Option<Shape>, frame: &Frame<'_>, sent: &mut [u64]) -> Option<u32> {
    let payload = frame.payload;
    let shape = match *shape {
        Some(shape) => shape,
        None => *shape.insert(Shape { length: payload.len(), stamp: message::find_stamp(payload)? }),
    };
    let stamp = payload.get(shape.stamp..)?.first_chunk().filter(|_| payload.len() == shape.length)?;
    let number = message::number(stamp)?;
    let sent = sent.get_mut(number as usize)?;
    if *sent == 0 {
        *sent = message::sent(stamp)?;
    }
    Some(number)
}

/// A payload that came in the envelope of another protocol.
fn framed(payload: &[u8]) -> Frame<'_> {
    Frame { first: frame::TEXT, mask: None, payload }
}

/// Answers a ping: in a long run the server wants a sign of life.
fn answer(client: &mut Client, ping: &[u8]) {
    let mut pong = Vec::new();
    frame::header(frame::PONG, true, u16::try_from(ping.len()).unwrap_or_default(), &mut pong);
    pong.extend_from_slice(ping);
    // A connection that has ended is noticed when it is read.
    let _ = client.socket.write_all(&pong);
}
