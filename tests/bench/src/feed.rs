//! The partner: plays messages to one server when it is told to.
//!
//! `bench feed [--messages N] [--parts N] [--burst N] [--pause-us N] [--publish-to ADDRESS/PATH] [--recording FILE]`
//!
//! Waits for a server to connect, or connects to a server that is published to. Then it prints `connected`. For each
//! part, it waits for a line on standard input, plays, and prints `played`. It stays connected.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    arguments::Arguments,
    clock,
    failure::{Context, Failure},
    frame, handshake, message,
    recording::Recording,
};

/// How often a waiting feed looks for pings.
const LOOK: Duration = Duration::from_millis(100);

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let plan = Plan {
        messages: arguments.option("--messages")?.unwrap_or(1),
        burst: arguments.option("--burst")?.unwrap_or(1),
        pause: Duration::from_micros(arguments.option("--pause-us")?.unwrap_or(0)),
        recording: arguments.option("--recording")?.map(|file: PathBuf| Recording::read(&file)).transpose()?,
    };
    let parts = arguments.option("--parts")?.unwrap_or(1);
    let publish_to: Option<String> = arguments.option("--publish-to")?;
    arguments.end()?;

    let mut line = match publish_to {
        Some(target) => Line { socket: connect(&target)?, masked: true },
        None => Line { socket: accept()?, masked: false },
    };
    line.socket.set_nodelay(true).context("TCP_NODELAY")?;
    println!("connected");
    let input = input();
    for part in 1..parts {
        line.wait_for(&input)?;
        line.play(&plan, part - 1)?;
        println!("played");
    }
    line.wait_for(&input)?;
    let drain = line.drain()?;
    line.play(&plan, parts - 1)?;
    println!("played");
    // This waits until the server or this process ends.
    drain.join().map_err(|_| Failure::new("the feed's reader panicked"))
}

/// What is played: bursts of messages, each sent as one write.
struct Plan {
    /// Messages in each part.
    messages: u32,
    burst: u32,
    /// From the start of one burst to the start of the next. 0: as fast as the server reads.
    pause: Duration,
    /// The recording that messages are taken from. `None`: they are made by `message`.
    recording: Option<Recording>,
}

impl Plan {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        match &self.recording {
            Some(recording) => recording.write(number, self.messages, clock::now(), out),
            None => message::write(number, clock::now(), out),
        }
    }
}

struct Line {
    socket: TcpStream,
    /// The side that connects must mask (RFC 6455, section 5.3).
    masked: bool,
}

impl Line {
    /// Answers pings until a line comes in. Connecting many clients takes longer than some servers wait for their
    /// partner's sign of life.
    fn wait_for(&mut self, input: &mpsc::Receiver<()>) -> Result<(), Failure> {
        self.socket.set_nonblocking(true).context("a socket")?;
        let mut bytes = Vec::new();
        loop {
            match input.recv_timeout(LOOK) {
                Ok(()) => return self.socket.set_nonblocking(false).context("a socket"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::new("standard input ended too early")),
            }
            match self.socket.read_to_end(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the server's bytes"),
                Ok(_) => return Err(Failure::new("the server closed the connection")),
            }
            let mut rest = bytes.as_slice();
            while let Some((frame, behind)) = frame::split(rest) {
                self.answer(&frame)?;
                rest = behind;
            }
            bytes = rest.to_vec();
        }
    }

    fn answer(&mut self, frame: &frame::Frame<'_>) -> Result<(), Failure> {
        if frame.first != frame::PING {
            return Ok(());
        }
        let mut pong = Vec::new();
        frame::header(frame::PONG, self.masked, u16::try_from(frame.payload.len()).context("a ping")?, &mut pong);
        let mask = frame.mask.unwrap_or_default();
        pong.extend(frame.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.socket.write_all(&pong).context("a pong")
    }

    /// Drops what the server sends from now on: some servers answer every message.
    fn drain(&self) -> Result<thread::JoinHandle<()>, Failure> {
        let mut socket = self.socket.try_clone().context("a socket")?;
        let mut buffer = [0; 4096];
        Ok(thread::spawn(move || while socket.read(&mut buffer).is_ok_and(|read| read > 0) {}))
    }

    /// Plays one part. Parts are counted from 0.
    fn play(&mut self, plan: &Plan, part: u32) -> Result<(), Failure> {
        let begin = Instant::now();
        let (mut bytes, mut payload) = (Vec::new(), Vec::new());
        let mut number = part * plan.messages;
        let last = number + plan.messages;
        let mut due = Duration::ZERO;
        while number < last {
            thread::sleep(due.saturating_sub(begin.elapsed()));
            due += plan.pause;
            bytes.clear();
            let end = last.min(number.saturating_add(plan.burst.max(1)));
            for number in number..end {
                payload.clear();
                plan.write(number, &mut payload);
                let length = u16::try_from(payload.len()).context("a message's length")?;
                frame::header(frame::TEXT, self.masked, length, &mut bytes);
                bytes.extend_from_slice(&payload);
            }
            self.socket.write_all(&bytes).context("a message to the server")?;
            number = end;
        }
        Ok(())
    }
}

fn accept() -> Result<TcpStream, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("the feed's listener")?;
    println!("listening {}", listener.local_addr().context("the feed's listener")?);
    let (mut socket, _) = listener.accept().context("the feed's listener")?;
    handshake::give(&mut socket)?;
    Ok(socket)
}

fn connect(target: &str) -> Result<TcpStream, Failure> {
    let (address, path) = target.split_once('/').context("an address without a path")?;
    let mut socket = TcpStream::connect(address).context(format!("connecting to {address}"))?;
    handshake::ask(&mut socket, &format!("/{path}"))?;
    Ok(socket)
}

/// Sends a message for each line of standard input.
fn input() -> mpsc::Receiver<()> {
    let (told, input) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lines() {
            if line.is_err() || told.send(()).is_err() {
                return;
            }
        }
    });
    input
}
