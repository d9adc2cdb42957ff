//! Clients that ask, wait for the answer, and ask again.
//!
//! `bench ask ADDRESS/PATH --clients N --seconds N --expect TEXT [--question TEXT]`
//!
//! With a question, they ask it over WebSockets; without one, they request the path over HTTP. Prints `warm` after a
//! second of that, then `asked` with a report. An answer without the expected text is wrong. The sockets stay open to
//! the end.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use super::{
    connect::{self, Target},
    histogram::Histogram,
    report::Asked,
    wait,
};
use crate::{
    arguments::Arguments,
    clock,
    failure::{Context, Failure},
    frame, handshake,
};

const EVENTS: usize = 1024;
const WINDOW: usize = 64;
const WARM: Duration = Duration::from_secs(1);
/// If no client is answered for this long, none will be.
const PATIENCE: Duration = Duration::from_secs(20);
const BUFFER_BYTES: usize = 16 * 1024;

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let count = arguments.option("--clients")?.unwrap_or(1);
    let seconds = arguments.option("--seconds")?.unwrap_or(1);
    let expect: String = arguments.option("--expect")?.context("--expect is missing")?;
    let question: Option<String> = arguments.option("--question")?;
    let target = Target::new(&arguments.word::<String>("an address with a path")?)?;
    arguments.end()?;

    let mut poll = Poll::new().context("epoll")?;
    let (sockets, protocol) = match question {
        Some(question) => {
            let (clients, _) = connect::connect(&mut poll, &target, count, WINDOW)?;
            let sockets = clients.into_iter().map(|client| client.socket).collect();
            (sockets, Protocol::WebSocket(frame::masked_text(&question)?))
        }
        None => {
            let sockets = (0..count).map(|nth| plain(&poll, target.address, nth)).collect::<Result<Vec<_>, _>>()?;
            (sockets, Protocol::Http(target.plain_request().into_bytes()))
        }
    };
    let askers = sockets.into_iter().map(|socket| Asker { socket, partial: Vec::new(), since: 0 }).collect();
    let mut crowd = Crowd { askers, protocol, expect: expect.into_bytes(), asked: Asked::default() };
    crowd.begin()?;
    crowd.ask(&mut poll, WARM)?;
    println!("warm");
    println!("asked {}", crowd.ask(&mut poll, Duration::from_secs(seconds))?);
    wait()
}

struct Crowd {
    askers: Vec<Asker>,
    protocol: Protocol,
    /// Text that every answer must have.
    expect: Vec<u8>,
    asked: Asked,
}

struct Asker {
    socket: TcpStream,
    /// The start of an answer.
    partial: Vec<u8>,
    /// When the client asked.
    since: u64,
}

/// The protocol, with the question as bytes.
enum Protocol {
    WebSocket(Vec<u8>),
    Http(Vec<u8>),
}

impl Crowd {
    fn begin(&mut self) -> Result<(), Failure> {
        self.askers.iter_mut().try_for_each(|asker| asker.ask(&self.protocol))
    }

    /// Lets every client go on asking for `time`.
    fn ask(&mut self, poll: &mut Poll, time: Duration) -> Result<Asked, Failure> {
        let mut latencies = Histogram::new();
        let mut events = Events::with_capacity(EVENTS);
        self.asked = Asked::default();
        let begin = Instant::now();
        while begin.elapsed() < time {
            poll.poll(&mut events, Some(PATIENCE)).context("epoll")?;
            (!events.is_empty()).then_some(()).context("no client is answered")?;
            for event in &events {
                let Some(asker) = self.askers.get_mut(event.token().0) else { continue };
                asker.read()?;
                while let Some(answer) = asker.answer(&self.protocol)? {
                    let good = answer.windows(self.expect.len()).any(|window| window == self.expect);
                    self.asked.answers += 1;
                    self.asked.wrong += u64::from(!good);
                    latencies.add(clock::now() - asker.since);
                    asker.ask(&self.protocol)?;
                }
            }
        }
        self.asked.seconds = begin.elapsed().as_secs_f64();
        self.asked.p50_ms = latencies.quantile(0.5) as f64 / 1e6;
        self.asked.p99_ms = latencies.quantile(0.99) as f64 / 1e6;
        Ok(std::mem::take(&mut self.asked))
    }
}

impl Asker {
    fn ask(&mut self, protocol: &Protocol) -> Result<(), Failure> {
        self.since = clock::now();
        let (Protocol::WebSocket(question) | Protocol::Http(question)) = protocol;
        // There is room: the last question was answered.
        self.socket.write_all(question).context("a question")
    }

    /// Reads what is there.
    fn read(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(Failure::new("a client was closed")),
                Ok(read) => self.partial.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("an answer"),
            }
        }
    }

    /// The answer, if it is whole. Anything else that came is dropped.
    fn answer(&mut self, protocol: &Protocol) -> Result<Option<Vec<u8>>, Failure> {
        match protocol {
            Protocol::WebSocket(_) => {
                while let Some((frame, rest)) = frame::split(&self.partial) {
                    let answer = (frame.first == frame::TEXT).then(|| frame.payload.to_vec());
                    let behind = self.partial.len() - rest.len();
                    self.partial.drain(..behind);
                    if answer.is_some() {
                        return Ok(answer);
                    }
                }
                Ok(None)
            }
            Protocol::Http(_) => {
                let Some(head) = handshake::behind_head(&self.partial) else { return Ok(None) };
                let end = head + handshake::content_length(self.partial.get(..head).unwrap_or_default())?;
                let whole = self.partial.len() >= end;
                Ok(whole.then(|| self.partial.drain(..end).collect()))
            }
        }
    }
}

/// Opens a connection without a handshake.
fn plain(poll: &Poll, address: SocketAddr, nth: usize) -> Result<TcpStream, Failure> {
    let socket = std::net::TcpStream::connect(address).context(address)?;
    socket.set_nodelay(true).context("a socket")?;
    socket.set_nonblocking(true).context("a socket")?;
    let mut socket = TcpStream::from_std(socket);
    poll.registry().register(&mut socket, Token(nth), Interest::READABLE).context("epoll")?;
    Ok(socket)
}
