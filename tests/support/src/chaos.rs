//! A TCP proxy between two who are to lose one another: it counts, delays, holds back, cuts and refuses.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{loopback, until, within};

/// What is read at once.
const CHUNK: usize = 16 * 1024;
/// How many chunks may be under way in each direction, delayed or held back, before the sender feels it: 4 MiB, as much
/// as a fast line carries in the longest latency.
const UNDER_WAY: usize = 256;
/// What is kept of what has passed, to find a text that comes in pieces: no text may be longer.
const REMEMBERED: usize = 256;

#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// To the target.
    Up,
    /// From the target.
    Down,
}

#[derive(Clone, Copy)]
pub enum Fault {
    /// Both ends of the connection get a reset.
    Cut,
    /// Nothing passes any more, either way, on any connection, until [`Chaos::go_on`].
    Stall,
    /// The receiver sees the end of this way of the connection, and its sender does not; the other way stays.
    HalfClose(Way),
}

/// In front of which byte a fault strikes: once that byte comes; it does not pass.
#[derive(Clone, Copy)]
pub enum When {
    /// After this many more bytes this way, on any connection.
    Passed(Way, usize),
    /// This text; a part of it may pass where it comes in pieces.
    Before(Way, &'static str),
    /// What follows this text.
    After(Way, &'static str),
    /// The answer to a request with this text: the target has done what it was asked, and nobody learns of it.
    Answer(&'static str),
}

pub struct Chaos {
    pub address: SocketAddr,
    line: Arc<Line>,
    listening: JoinSet<()>,
    forwarding: Arc<Mutex<JoinSet<()>>>,
}

/// What all connections share.
struct Line {
    target: SocketAddr,
    flowing: watch::Sender<bool>,
    latency: Mutex<Duration>,
    armed: watch::Sender<Option<(Trap, Fault)>>,
    connections: AtomicUsize,
    /// Those that may still be open.
    open: Mutex<Vec<Weak<Connection>>>,
    bytes: [AtomicU64; 2],
}

enum Trap {
    When(When),
    /// The next byte this way on the connection with this number.
    Next(usize, Way),
}

struct Connection {
    number: usize,
    cut: CancellationToken,
    /// By the way.
    half_closed: [CancellationToken; 2],
}

impl Chaos {
    pub async fn start(target: SocketAddr) -> Self {
        Self::start_at((loopback(), 0).into(), target).await
    }

    /// The same, at an address that somebody expects it at.
    pub async fn start_at(address: SocketAddr, target: SocketAddr) -> Self {
        let line = Arc::new(Line {
            target,
            flowing: watch::Sender::new(true),
            latency: Mutex::default(),
            armed: watch::Sender::new(None),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            bytes: Default::default(),
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut chaos = Self { address, line, listening: JoinSet::new(), forwarding: Arc::default() };
        chaos.listen(listener);
        chaos
    }

    fn listen(&mut self, listener: TcpListener) {
        let (line, forwarding) = (Arc::clone(&self.line), Arc::clone(&self.forwarding));
        self.listening.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let connection = line.connected();
                forwarding.lock().unwrap().spawn(forward(socket, connection, Arc::clone(&line)));
            }
        });
    }

    /// From now on connections are refused; those there are stay.
    pub async fn refuse(&mut self) {
        self.listening.shutdown().await;
        // A child that another test is just starting may have the listener open for a moment more.
        until("refusal", async || match TcpStream::connect(self.address).await {
            Ok(_) => Err("a connection".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }

    /// Takes connections again where it did before.
    pub async fn accept(&mut self) {
        // Or the listener from before for as long.
        let bound =
            until("the address", async || TcpListener::bind(self.address).await.map_err(|error| error.to_string()));
        self.listen(bound.await);
    }

    /// Resets every connection.
    pub fn cut(&self) {
        self.line.open().iter().for_each(|connection| connection.cut.cancel());
    }

    /// [`Fault::HalfClose`] of every connection.
    pub fn half_close(&self, way: Way) {
        self.line.open().iter().for_each(|connection| connection.half_closed[way as usize].cancel());
    }

    /// [`Fault::Stall`], now.
    pub fn stall(&self) {
        self.line.flowing.send_replace(false);
    }

    /// Ends a stall, and one that was armed does not come any more.
    pub fn go_on(&self) {
        self.line.armed.send_if_modified(|armed| armed.take_if(|(_, fault)| matches!(fault, Fault::Stall)).is_some());
        self.line.flowing.send_replace(true);
    }

    /// How much later everything that comes from now on arrives, each way.
    pub fn latency(&self, latency: Duration) {
        *self.line.latency.lock().unwrap() = latency;
    }

    /// Lets a fault strike once, on the connection where it is due; instead of one that was armed and has not struck.
    pub fn arm(&self, when: When, fault: Fault) {
        self.line.armed.send_replace(Some((Trap::When(when), fault)));
    }

    /// Waits until what was armed has struck.
    pub async fn struck(&self) {
        let mut armed = self.line.armed.subscribe();
        within("the fault that was armed", armed.wait_for(Option::is_none)).await.unwrap();
    }

    /// Connections that were ever opened.
    pub fn connections(&self) -> usize {
        self.line.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.line.open().len()
    }

    /// Bytes that have passed.
    pub fn bytes(&self, way: Way) -> u64 {
        self.line.bytes[way as usize].load(Ordering::SeqCst)
    }
}

impl Line {
    fn connected(&self) -> Arc<Connection> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let connection =
            Arc::new(Connection { number, cut: CancellationToken::new(), half_closed: Default::default() });
        self.open.lock().unwrap().push(Arc::downgrade(&connection));
        connection
    }

    fn open(&self) -> Vec<Arc<Connection>> {
        let mut open = self.open.lock().unwrap();
        open.retain(|connection| connection.strong_count() > 0);
        open.iter().filter_map(Weak::upgrade).collect()
    }

    /// How much of a chunk may pass, after the last that has `passed`, and what strikes then.
    fn judge(&self, way: Way, connection: &Connection, passed: &[u8], chunk: &[u8]) -> (usize, Option<Fault>) {
        let mut verdict = (chunk.len(), None);
        self.armed.send_if_modified(|armed| {
            let Some((trap, fault)) = armed else { return false };
            let strikes = match trap {
                Trap::When(when) => match when.position(way, passed, chunk) {
                    Some(position) if position < chunk.len() => Some(position),
                    // Its byte has still to come.
                    Some(_) => {
                        let way = if let When::Answer(_) = when { Way::Down } else { way };
                        *trap = Trap::Next(connection.number, way);
                        None
                    }
                    None => None,
                },
                Trap::Next(number, next) => (*number == connection.number && *next == way).then_some(0),
            };
            let Some(position) = strikes else { return false };
            verdict = (position, Some(*fault));
            *armed = None;
            true
        });
        verdict
    }
}

impl When {
    /// Where in this chunk the byte is, or its end where that is still to come.
    fn position(&mut self, way: Way, passed: &[u8], chunk: &[u8]) -> Option<usize> {
        // A text may have begun in what has passed.
        let find = |text: &str| {
            let begun = &passed[passed.len() - passed.len().min(text.len() - 1)..];
            let bytes = [begun, chunk].concat();
            let found = bytes.windows(text.len()).position(|window| window == text.as_bytes())?;
            Some((found.saturating_sub(begun.len()), found + text.len() - begun.len()))
        };
        match self {
            Self::Passed(wanted, left) if *wanted == way && *left < chunk.len() => Some(*left),
            Self::Passed(wanted, left) if *wanted == way => {
                *left -= chunk.len();
                None
            }
            Self::Before(wanted, text) if *wanted == way => find(text).map(|(start, _)| start),
            Self::After(wanted, text) if *wanted == way => find(text).map(|(_, end)| end),
            Self::Answer(text) if way == Way::Up => find(text).map(|_| chunk.len()),
            _ => None,
        }
    }
}

/// A connection, from its arrival to its end; an end or a reset on one side is passed on to the other.
async fn forward(mut client: TcpStream, connection: Arc<Connection>, line: Arc<Line>) {
    let ended = match TcpStream::connect(line.target).await {
        Err(error) => Err(error),
        Ok(mut target) => {
            for socket in [&client, &target] {
                socket.set_nodelay(true).unwrap();
            }
            let (from_client, to_client) = client.split();
            let (from_target, to_target) = target.split();
            let ended = tokio::select! {
                () = connection.cut.cancelled() => Err(ErrorKind::ConnectionReset.into()),
                ended = async {
                    tokio::try_join!(
                        one_way(Way::Up, from_client, to_target, &connection, &line),
                        one_way(Way::Down, from_target, to_client, &connection, &line),
                    )
                } => ended,
            };
            if ended.is_err() {
                target.set_zero_linger().unwrap();
            }
            ended.map(drop)
        }
    };
    if ended.is_err() {
        client.set_zero_linger().unwrap();
    }
}

async fn one_way(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    connection: &Connection,
    line: &Line,
) -> io::Result<()> {
    let (sender, mut chunks) = mpsc::channel(UNDER_WAY);
    let take = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            // An empty one is the end.
            let ended = from.read_buf(&mut chunk).await? == 0;
            let due = Instant::now() + *line.latency.lock().unwrap();
            // Fails once the way is closed: then it is lost.
            let _ = sender.send((due, chunk)).await;
            if ended {
                return Ok(());
            }
        }
    };
    let give = async {
        tokio::select! {
            biased;
            () = connection.half_closed[way as usize].cancelled() => {}
            ended = pass_on(way, &mut chunks, &mut to, connection, line) => ended?,
        }
        drop(chunks);
        to.shutdown().await
    };
    tokio::try_join!(take, give).map(drop)
}

async fn pass_on(
    way: Way,
    chunks: &mut mpsc::Receiver<(Instant, Vec<u8>)>,
    to: &mut WriteHalf<'_>,
    connection: &Connection,
    line: &Line,
) -> io::Result<()> {
    let mut flowing = line.flowing.subscribe();
    let mut passed = Vec::new();
    while let Some((due, chunk)) = chunks.recv().await {
        tokio::time::sleep_until(due).await;
        let mut rest = &chunk[..];
        loop {
            // The line goes after its connections.
            let _ = flowing.wait_for(|flowing| *flowing).await;
            if rest.is_empty() {
                break;
            }
            let (passes, fault) = line.judge(way, connection, &passed, rest);
            to.write_all(&rest[..passes]).await?;
            line.bytes[way as usize].fetch_add(passes as u64, Ordering::SeqCst);
            passed.extend_from_slice(&rest[..passes]);
            passed.drain(..passed.len().saturating_sub(REMEMBERED));
            rest = &rest[passes..];
            match fault {
                None => {}
                Some(Fault::Cut) => return Err(ErrorKind::ConnectionReset.into()),
                Some(Fault::Stall) => {
                    line.flowing.send_replace(false);
                }
                Some(Fault::HalfClose(closed)) if closed == way => return Ok(()),
                Some(Fault::HalfClose(closed)) => connection.half_closed[closed as usize].cancel(),
            }
        }
    }
    Ok(())
}
