//! Clients come: a bounded number of handshakes at a time.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect as start, socket_with, sockopt};

use super::{order::Order, report::Connected};
use crate::{
    failure::{Context, Failure},
    handshake,
};

/// Clients are spread over this many source addresses, 127.0.0.2 and up: each has its own 28,000 ports.
const SOURCES: u8 = 16;
const EVENTS: usize = 1024;
/// A server that gives no sign for this long gives none.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Target {
    address: SocketAddr,
    request: String,
}

impl Target {
    /// `ADDRESS/PATH`.
    pub fn new(text: &str) -> Result<Self, Failure> {
        let (address, path) = text.split_once('/').context("an address without a path")?;
        let request = handshake::request(address, &format!("/{path}"));
        Ok(Self { address: address.parse().context(address)?, request })
    }
}

pub struct Client {
    pub socket: TcpStream,
    /// The begin of a message (or, before that, of the handshake's answer) whose rest is still to come.
    pub partial: Vec<u8>,
    pub order: Order,
    /// By the server.
    pub closed: bool,
    stage: Stage,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Connecting,
    Asked,
    Open,
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
            let Some(client) = clients.get_mut(event.token().0).filter(|client| client.stage != Stage::Open) else {
                continue;
            };
            client.go_on(target)?;
            open += usize::from(client.stage == Stage::Open);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok((clients, Connected { seconds }))
}

impl Client {
    fn start(poll: &Poll, target: &Target, nth: usize) -> Result<Self, Failure> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("a socket")?;
        // Closed at once at the end, without a minute in TIME_WAIT that would use up the ports.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).context("SO_LINGER")?;
        let last = 2 + u8::try_from(nth % usize::from(SOURCES)).unwrap_or_default();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0)).context("a source address")?;
        match start(&socket, &target.address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context(format!("connecting to {}", target.address)),
        }
        let mut socket = TcpStream::from_std(socket.into());
        // Edge-triggered, and the buffer for what is sent never fills: later this costs no events.
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut socket, Token(nth), interest).context("epoll")?;
        Ok(Self { socket, partial: Vec::new(), order: Order::default(), closed: false, stage: Stage::Connecting })
    }

    /// As far as the handshake goes now.
    fn go_on(&mut self, target: &Target) -> Result<(), Failure> {
        if self.stage == Stage::Connecting {
            if let Some(error) = self.socket.take_error().context("a socket")? {
                return Err(error).context(format!("connecting to {}", target.address));
            }
            if self.socket.peer_addr().is_err() {
                return Ok(()); // Not connected yet.
            }
            self.socket.write_all(target.request.as_bytes()).context("a handshake")?;
            self.stage = Stage::Asked;
        }
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(Failure::new("a client was closed in its handshake")),
                Ok(read) => self.partial.extend(buffer.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("a handshake's answer"),
            }
        }
        if let Some(end) = handshake::behind_head(&self.partial) {
            let head: Vec<u8> = self.partial.drain(..end).collect();
            handshake::check_answer(&head)?;
            self.stage = Stage::Open;
        }
        Ok(())
    }
}
