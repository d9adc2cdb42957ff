//! Many plain clients that must all get the same bytes: frames of one size, each of which begins with its number.
//!
//! One thread reads them all. The bytes of the client that is ahead are kept, and those of the others are compared with
//! them. So checking every byte of a million frames costs next to nothing.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token};

use super::raw::request;

/// Bytes read at a time from one client.
const READ: usize = 64 << 10;
/// Time between two checks whether to end.
const LOOK: Duration = Duration::from_millis(20);
/// The bytes before each payload: the header of a final text frame of at most 125 bytes (RFC 6455, section 5.2).
const HEADER: usize = 2;

pub struct Crowd {
    shared: Arc<Shared>,
    reading: Option<JoinHandle<()>>,
}

struct Shared {
    payload: usize,
    state: Mutex<State>,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    /// All bytes that any client has got.
    log: Vec<u8>,
    /// When each message was sent, by its number.
    sent: Vec<Instant>,
    /// How long each delivery took since its message was sent, while that is measured.
    latencies: Option<Vec<Duration>>,
    /// How many whole messages every client has.
    everybody_has: usize,
    /// The first thing that went wrong.
    wrong: Option<String>,
}

struct Member {
    socket: mio::net::TcpStream,
    /// How many bytes the client has got.
    position: usize,
}

impl Crowd {
    /// Connects this many clients to a path. Each message will have a payload of this many bytes.
    pub fn connect(address: SocketAddr, path: &str, clients: usize, payload: usize) -> Self {
        assert!(payload < 126, "a longer frame has another header");
        let members: Vec<_> = (0..clients).map(|_| Member::connect(address, path)).collect();
        let shared = Arc::new(Shared { payload, state: Mutex::default(), stop: AtomicBool::new(false) });
        let reader = Arc::clone(&shared);
        let reading = thread::spawn(move || reader.read(members));
        Self { shared, reading: Some(reading) }
    }

    /// Returns the next message's number, and notes that it is sent now.
    pub fn number(&self) -> usize {
        let mut state = self.shared.state.lock().unwrap();
        state.sent.push(Instant::now());
        state.sent.len() - 1
    }

    /// Returns the latencies of all deliveries while `meanwhile` runs.
    pub async fn latencies(&self, meanwhile: impl Future<Output = ()>) -> Vec<Duration> {
        self.shared.state.lock().unwrap().latencies = Some(Vec::new());
        meanwhile.await;
        self.shared.state.lock().unwrap().latencies.take().unwrap()
    }

    /// Returns how many messages every client has, or what went wrong.
    pub fn everybody_has(&self) -> Result<usize, String> {
        let state = self.shared.state.lock().unwrap();
        state.wrong.clone().map_or(Ok(state.everybody_has), Err)
    }

    /// Returns the payloads that clients have got, from the message with this number on.
    pub fn payloads(&self, from: usize) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        let size = HEADER + self.shared.payload;
        let log = &state.log[(from * size).min(state.log.len())..];
        log.chunks_exact(size).map(|frame| String::from_utf8(frame[HEADER..].to_vec()).unwrap()).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.reading.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the crowd's thread panicked");
    }
}

impl Shared {
    fn read(&self, mut members: Vec<Member>) {
        let mut poll = Poll::new().unwrap();
        for (index, member) in members.iter_mut().enumerate() {
            poll.registry().register(&mut member.socket, Token(index), Interest::READABLE).unwrap();
        }
        let (mut events, mut buffer) = (Events::with_capacity(1024), vec![0; READ]);
        while !self.stop.load(Ordering::Relaxed) {
            poll.poll(&mut events, Some(LOOK)).unwrap();
            for event in &events {
                self.drain(&mut members[event.token().0], &mut buffer);
            }
            let least = members.iter().map(|member| member.position).min().unwrap_or(0);
            self.state.lock().unwrap().everybody_has = least / (HEADER + self.payload);
        }
    }

    fn drain(&self, member: &mut Member, buffer: &mut [u8]) {
        loop {
            match member.socket.read(buffer) {
                Ok(0) => return self.state.lock().unwrap().goes_wrong("a client was closed"),
                Ok(length) => {
                    let before = member.position;
                    member.position += length;
                    self.state.lock().unwrap().take(before, &buffer[..length], self.payload);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.state.lock().unwrap().goes_wrong(&format!("a client was lost: {error}")),
            }
        }
    }
}

impl State {
    fn goes_wrong(&mut self, what: &str) {
        self.wrong.get_or_insert_with(|| what.to_owned());
    }

    /// Takes in what a client got at its position.
    fn take(&mut self, position: usize, bytes: &[u8], payload: usize) {
        let known = self.log.len().saturating_sub(position).min(bytes.len());
        if self.log[position..position + known] != bytes[..known] {
            self.goes_wrong(&format!("clients got different bytes after {position}"));
        }
        let size = HEADER + payload;
        let whole_before = self.log.len() / size;
        self.log.extend_from_slice(&bytes[known..]);
        for number in whole_before..self.log.len() / size {
            self.check(number, payload);
        }
        if let Some(latencies) = &mut self.latencies {
            let now = Instant::now();
            let arrived = position / size..((position + bytes.len()) / size).min(self.sent.len());
            latencies.extend(self.sent[arrived].iter().map(|sent| now - *sent));
        }
    }

    /// Checks the first message with this number.
    fn check(&mut self, number: usize, payload: usize) {
        let size = HEADER + payload;
        let frame = &self.log[number * size..][..size];
        let begins = format!("{number:08} ");
        if frame[..HEADER] != [0x81, payload as u8] || !frame[HEADER..].starts_with(begins.as_bytes()) {
            let shown = String::from_utf8_lossy(frame).into_owned();
            self.goes_wrong(&format!("message {number} is {shown:?}"));
        } else if number >= self.sent.len() {
            self.goes_wrong(&format!("message {number} was never sent"));
        }
    }
}

impl Member {
    fn connect(address: SocketAddr, path: &str) -> Self {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(super::DEADLINE)).unwrap();
        socket.write_all(request(address, path).as_bytes()).unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        socket.set_nonblocking(true).unwrap();
        Self { socket: mio::net::TcpStream::from_std(socket), position: 0 }
    }
}
