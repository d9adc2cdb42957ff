//! The smallest possible relay: epoll, and one log of bytes that all clients read from. `bench ceiling FEED`
//!
//! The feed's frames are passed on as they are, so nothing is parsed. There is no HTTP library, no liveness, no limit
//! and no TLS, and the log keeps everything. What a relay costs above this is what it does for its users.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Registry, Token,
    net::{TcpListener, TcpStream},
};

use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
    handshake,
};

const LISTENER: Token = Token(usize::MAX - 1);
const FEED: Token = Token(usize::MAX - 2);
const EVENTS: usize = 1024;
const BUFFER_BYTES: usize = 256 * 1024;
/// The log's size in bytes, which does not grow. Pages that were never written to cost nothing.
const LOG_BYTES: usize = 64 * 1024 * 1024;

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let feed: SocketAddr = arguments.word("the feed's address")?;
    arguments.end()?;
    let mut feed = std::net::TcpStream::connect(feed).context("the feed")?;
    handshake::ask(&mut feed, "/")?;
    feed.set_nonblocking(true).context("the feed")?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).context("the listener")?;
    println!("listening {}", listener.local_addr().context("the listener")?);
    Server::new(TcpStream::from_std(feed), listener)?.serve()
}

struct Server {
    poll: Poll,
    feed: TcpStream,
    listener: TcpListener,
    /// Clients that have gone leave their places empty.
    clients: Vec<Option<Client>>,
    log: Vec<u8>,
    buffer: Vec<u8>,
}

impl Server {
    fn new(mut feed: TcpStream, mut listener: TcpListener) -> Result<Self, Failure> {
        let poll = Poll::new().context("epoll")?;
        poll.registry().register(&mut feed, FEED, Interest::READABLE).context("epoll")?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).context("epoll")?;
        let log = Vec::with_capacity(LOG_BYTES);
        Ok(Self { poll, feed, listener, clients: Vec::new(), log, buffer: vec![0; BUFFER_BYTES] })
    }

    fn serve(mut self) -> Result<(), Failure> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            self.poll.poll(&mut events, None::<Duration>).context("epoll")?;
            let before = self.log.len();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    FEED => self.take()?,
                    Token(nth) => {
                        let Some(place) = self.clients.get_mut(nth) else { continue };
                        let Some(client) = place else { continue };
                        if event.is_readable() {
                            client.read(&mut self.buffer, self.log.len());
                        }
                        if event.is_writable() && client.blocked {
                            client.write(nth, &self.log, self.poll.registry());
                        }
                        if client.gone {
                            *place = None;
                        }
                    }
                }
            }
            if self.log.len() > before {
                let open =
                    self.clients.iter_mut().enumerate().filter_map(|(nth, client)| Some((nth, client.as_mut()?)));
                let open = open.filter(|(_, client)| client.open && !client.blocked);
                open.for_each(|(nth, client)| client.write(nth, &self.log, self.poll.registry()));
            }
        }
    }

    fn accept(&mut self) -> Result<(), Failure> {
        while let Ok((mut socket, _)) = self.listener.accept() {
            socket.set_nodelay(true).context("TCP_NODELAY")?;
            let token = Token(self.clients.len());
            self.poll.registry().register(&mut socket, token, Interest::READABLE).context("epoll")?;
            self.clients.push(Some(Client { socket, position: 0, open: false, blocked: false, gone: false }));
        }
        Ok(())
    }

    /// Takes all that the feed has sent, before any client is written to.
    fn take(&mut self) -> Result<(), Failure> {
        loop {
            match self.feed.read(&mut self.buffer) {
                Ok(0) => return Err(Failure::new("the feed is gone")),
                Ok(read) => {
                    self.log.extend_from_slice(self.buffer.get(..read).unwrap_or_default());
                    if read < self.buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("the feed"),
            }
        }
    }
}

struct Client {
    socket: TcpStream,
    /// The client's place in the log.
    position: usize,
    /// Whether the handshake is over.
    open: bool,
    /// Whether the socket is full. Epoll tells when it is not.
    blocked: bool,
    /// Whether the client has closed the connection.
    gone: bool,
}

impl Client {
    /// Takes the first bytes for the handshake of a client of this program. Later bytes are ignored.
    fn read(&mut self, buffer: &mut [u8], end: usize) {
        let read = self.socket.read(buffer);
        self.gone = match &read {
            Ok(read) => *read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if !self.open && read.is_ok_and(|read| read > 0) {
            self.open = self.socket.write_all(handshake::known_answer().as_bytes()).is_ok();
            self.position = end;
        }
    }

    /// Writes the log, from the client's place to its end or until the socket is full.
    fn write(&mut self, nth: usize, log: &[u8], registry: &Registry) {
        let mut blocked = false;
        while let Some(bytes @ [_, ..]) = log.get(self.position..) {
            match self.socket.write(bytes) {
                Ok(written) => self.position += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    blocked = true;
                    break;
                }
                Err(_) => {
                    self.open = false;
                    return;
                }
            }
        }
        if blocked != self.blocked {
            self.blocked = blocked;
            let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // A client that epoll no longer knows is gone.
            self.open = registry.reregister(&mut self.socket, Token(nth), interest).is_ok();
        }
    }
}
