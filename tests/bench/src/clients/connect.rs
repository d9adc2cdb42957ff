//! Connects clients, with a bounded number of handshakes at a time.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect as start, socket_with, sockopt};

use super::{centrifuge, door::Door, order::Order, position::Position, report::Connected};
use crate::{
    failure::{Context, Failure},
    frame, handshake,
};

/// Clients are spread over this many source addresses, 127.0.0.2 and up: each has its own 28,000 ports.
const SOURCES: u8 = 16;
const EVENTS: usize = 1024;
/// After this long without a sign from the server, there will be none.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Target {
    pub address: SocketAddr,
    path: String,
    /// The door that is at this path.
    door: Door,
    /// Whether compression is offered.
    compressed: bool,
}

impl Target {
    /// Parses `ADDRESS/PATH`.
    pub fn new(text: &str) -> Result<Self, Failure> {
        let (address, path) = text.split_once('/').context("an address without a path")?;
        let address = address.parse().context(address)?;
        Ok(Self { address, path: format!("/{path}"), door: Door::WebSocket, compressed: false })
    }

    pub fn with_door(self, door: Door) -> Self {
        Self { door, ..self }
    }

    pub fn compressed(self, compressed: bool) -> Self {
        Self { compressed, ..self }
    }

    /// A request to be let in. That for events does not say what it accepts: an `EventSource` is answered a stream even
    /// when there is no room, and that would not count as 503.
    pub fn request(&self) -> String {
        if self.door == Door::Events {
            return self.plain_request();
        }
        let request = if self.compressed { handshake::request_compressed } else { handshake::request };
        request(self.address, &self.path)
    }

    /// An HTTP request for one answer.
    pub fn plain_request(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.path, self.address)
    }

    /// A request for everything after a position.
    pub fn request_since(&self, position: &Position) -> String {
        let more = if self.path.contains('?') { '&' } else { '?' };
        handshake::request(self.address, &format!("{}{more}since={position}", self.path))
    }
}

pub struct Client {
    pub socket: TcpStream,
    pub door: Door,
    /// The start of a message whose rest is still to come. Before that, the start of the handshake's answer.
    pub partial: Vec<u8>,
    pub order: Order,
    /// Whether compression was agreed on.
    pub agreed: bool,
    /// Whether it reads what comes.
    pub reads: bool,
    /// Whether the server closed the connection.
    pub closed: bool,
    /// The code in the server's close frame.
    pub close_code: Option<u16>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Asked,
    /// It has sent the door's command with this number, counted from 0.
    Entering(usize),
    Open,
}

/// Why a client was not let in.
pub enum Denied {
    /// There is no room. The client may try again after this time.
    Busy(Duration),
    /// There was no answer.
    Lost(Failure),
    /// The server refused the client, and will refuse it later too.
    Refused(Failure),
}

/// Connects `count` clients, at most `window` of them at a time.
pub fn connect(
    poll: &mut Poll,
    target: &Target,
    count: usize,
    window: usize,
) -> Result<(Vec<Client>, Connected), Failure> {
    let begin = Instant::now();
    let mut events = Events::with_capacity(EVENTS);
    let mut clients = Vec::with_capacity(count);
    let request = target.request();
    let mut open = 0;
    while open < count {
        while clients.len() < count && clients.len() - open < window.max(1) {
            clients.push(Client::start(poll, target, clients.len())?);
        }
        poll.poll(&mut events, Some(PATIENCE)).context("epoll")?;
        if events.is_empty() {
            return Err(Failure::new(format!("{open} of {count} clients connected, then nothing for {PATIENCE:?}")));
        }
        for event in &events {
            let Some(client) = clients.get_mut(event.token().0).filter(|client| !client.is_open()) else { continue };
            let opened = client.go_on(&request).map_err(|denied| match denied {
                Denied::Busy(_) => Failure::new("the server has no room"),
                Denied::Lost(failure) | Denied::Refused(failure) => failure,
            });
            open += usize::from(opened?);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let agreed = clients.iter().filter(|client| client.agreed).count() as u64;
    Ok((clients, Connected { seconds, agreed }))
}

impl Client {
    pub fn start(poll: &Poll, target: &Target, nth: usize) -> Result<Self, Failure> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("a socket")?;
        // With this, a socket is closed at once, without a minute in TIME_WAIT that would use up the ports.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).context("SO_LINGER")?;
        let last = 2 + u8::try_from(nth % usize::from(SOURCES)).unwrap_or_default();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0)).context("a source address")?;
        match start(&socket, &target.address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context(format!("connecting to {}", target.address)),
        }
        let mut socket = TcpStream::from_std(socket.into());
        // This is edge-triggered, and the send buffer never fills, so it costs no events later.
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut socket, Token(nth), interest).context("epoll")?;
        Ok(Self {
            socket,
            door: target.door,
            partial: Vec::new(),
            order: Order::default(),
            agreed: false,
            reads: true,
            closed: false,
            close_code: None,
            stage: Stage::Connecting,
        })
    }

    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Goes on with the handshake, and with the door's commands, as far as it can. Returns whether the client is in.
    /// Bytes that came after that are in `partial`.
    pub fn go_on(&mut self, request: &str) -> Result<bool, Denied> {
        if self.stage == Stage::Connecting {
            if let Some(error) = self.socket.take_error().unwrap_or_else(Some) {
                return Err(lost("connecting", &error));
            }
            if self.socket.peer_addr().is_err() {
                return Ok(false); // Not connected yet.
            }
            self.socket.write_all(request.as_bytes()).map_err(|error| lost("a handshake", &error))?;
            self.stage = Stage::Asked;
        }
        let mut buffer = [0; 4096];
        let end = loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break Some(Failure::new("a client was closed in its handshake")),
                Ok(read) => self.partial.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) => break Some(Failure::new(format!("a handshake's answer: {error}"))),
            }
        };
        if self.stage == Stage::Asked {
            self.take_head()?;
        }
        self.take_replies()?;
        match end {
            Some(failure) if !self.is_open() => Err(Denied::Lost(failure)),
            _ => Ok(self.is_open()),
        }
    }

    /// Checks the head of the request's answer, once it is whole.
    fn take_head(&mut self) -> Result<(), Denied> {
        let Some(behind) = handshake::behind_head(&self.partial) else { return Ok(()) };
        let head: Vec<u8> = self.partial.drain(..behind).collect();
        handshake::busy(&head).map_or(Ok(()), |pause| Err(Denied::Busy(pause)))?;
        match self.door {
            Door::Events => handshake::check_events(&head).map_err(Denied::Refused)?,
            Door::WebSocket | Door::Centrifuge => {
                handshake::check_answer(&head).map_err(Denied::Refused)?;
                self.agreed = handshake::agreed(&head).map_err(Denied::Refused)?;
            }
        }
        self.command(0)
    }

    /// Sends the door's command with this number. After the last one the client is in.
    fn command(&mut self, nth: usize) -> Result<(), Denied> {
        let Some(command) = self.door.commands().get(nth) else {
            self.stage = Stage::Open;
            return Ok(());
        };
        self.stage = Stage::Entering(nth);
        self.say(command.text)
    }

    /// Takes the replies to the door's commands, and sends the next command after each. A reply has a frame of its own.
    fn take_replies(&mut self) -> Result<(), Denied> {
        while let Stage::Entering(nth) = self.stage {
            let Some(command) = self.door.commands().get(nth) else { return Ok(()) };
            let Some((frame, rest)) = frame::split(&self.partial) else { return Ok(()) };
            let other = || {
                let reply = String::from_utf8_lossy(frame.payload);
                Failure::new(format!("{} is answered with {reply:?}", command.text))
            };
            let granted = frame.payload.starts_with(command.granted);
            match frame.first {
                frame::TEXT if granted || frame.payload == centrifuge::PING.as_bytes() => {}
                frame::TEXT => return Err(Denied::Refused(other())),
                _ => return Err(Denied::Lost(other())),
            }
            let behind = self.partial.len() - rest.len();
            self.partial.drain(..behind);
            match granted {
                true => self.command(nth + 1)?,
                false => self.say(centrifuge::PING)?,
            }
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<(), Denied> {
        let bytes = frame::masked_text(text).map_err(Denied::Refused)?;
        self.socket.write_all(&bytes).map_err(|error| lost("a command", &error))
    }
}

fn lost(doing: &str, error: &io::Error) -> Denied {
    Denied::Lost(Failure::new(format!("{doing}: {error}")))
}
