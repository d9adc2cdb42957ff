//! A TCP proxy that makes a connection fail: it counts, delays, holds back, cuts and refuses.

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

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// How many chunks may be under way in each direction, delayed or held back, before the sender is slowed down: 4 MiB,
/// as much as a fast line carries in the longest latency.
const UNDER_WAY: usize = 256;
/// How many of the passed bytes are kept, to find a text that arrives in pieces. No text may be longer.
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
    /// Nothing passes any more, in either direction, on any connection, until [`Chaos::go_on`].
    Stall,
    /// The receiver of this direction sees its end, and the sender does not. The other direction stays open.
    HalfClose(Way),
}

/// The byte that a fault waits for. The fault strikes when that byte comes, and the byte does not pass.
#[derive(Clone, Copy)]
pub enum When {
    /// The byte after this many more bytes in this direction, on any connection.
    Passed(Way, usize),
    /// The first byte of this text. If the text arrives in pieces, a part of it may have passed.
    Before(Way, &'static str),
    /// The first byte after this text.
    After(Way, &'static str),
    /// The first byte of the answer to a request with this text. The target has then done what it was asked, and the
    /// client does not learn of it.
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
    target: Mutex<SocketAddr>,
    flowing: watch::Sender<bool>,
    latency: Mutex<Duration>,
    armed: watch::Sender<Option<(Trap, Fault)>>,
    connections: AtomicUsize,
    /// Connections that may still be open.
    open: Mutex<Vec<Weak<Connection>>>,
    bytes: [AtomicU64; 2],
}

enum Trap {
    When(When),
    /// The next byte in this direction on the connection with this number.
    Next(usize, Way),
}

struct Connection {
    number: usize,
    cut: CancellationToken,
    /// Nothing passes any more.
    frozen: CancellationToken,
    /// One for each direction.
    half_closed: [CancellationToken; 2],
}

impl Chaos {
    pub async fn start(target: SocketAddr) -> Self {
        Self::start_at((loopback(), 0).into(), target).await
    }

    /// Starts a proxy at a given address, for a client that already knows it.
    pub async fn start_at(address: SocketAddr, target: SocketAddr) -> Self {
        let line = Arc::new(Line {
            target: Mutex::new(target),
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

    /// Refuses connections from now on. Open ones stay.
    pub async fn refuse(&mut self) {
        self.listening.shutdown().await;
        // A child process that another test is just starting may hold the listener open for a moment more.
        until("refusal", async || match TcpStream::connect(self.address).await {
            Ok(_) => Err("a connection".to_owned()),
            Err(_) => Ok(()),
        })
        .await;
    }

    /// Accepts connections again, at the same address.
    pub async fn accept(&mut self) {
        // For a moment the old listener may still hold the address.
        let bound =
            until("the address", async || TcpListener::bind(self.address).await.map_err(|error| error.to_string()));
        self.listen(bound.await);
    }

    /// Leads connections to another target from now on. Open ones stay.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.line.target.lock().unwrap() = target;
    }

    /// Resets every connection.
    pub fn cut(&self) {
        self.line.open().iter().for_each(|connection| connection.cut.cancel());
    }

    /// Does [`Fault::HalfClose`] to every connection.
    pub fn half_close(&self, way: Way) {
        self.line.open().iter().for_each(|connection| connection.half_closed[way as usize].cancel());
    }

    /// Lets nothing pass any more on the connections that are open, in either direction. They stay open, and others
    /// flow.
    pub fn freeze(&self) {
        self.line.open().iter().for_each(|connection| connection.frozen.cancel());
    }

    /// Does [`Fault::Stall`] now.
    pub fn stall(&self) {
        self.line.flowing.send_replace(false);
    }

    /// Ends a stall, and disarms one that has not struck yet.
    pub fn go_on(&self) {
        self.line.armed.send_if_modified(|armed| armed.take_if(|(_, fault)| matches!(fault, Fault::Stall)).is_some());
        self.line.flowing.send_replace(true);
    }

    /// Delays everything that comes from now on by this much, in each direction.
    pub fn latency(&self, latency: Duration) {
        *self.line.latency.lock().unwrap() = latency;
    }

    /// Arms a fault, which strikes once, on the connection where its byte comes. It replaces one that has not struck
    /// yet.
    pub fn arm(&self, when: When, fault: Fault) {
        self.line.armed.send_replace(Some((Trap::When(when), fault)));
    }

    /// Waits until the armed fault has struck.
    pub async fn struck(&self) {
        let mut armed = self.line.armed.subscribe();
        within("the fault that was armed", armed.wait_for(Option::is_none)).await.unwrap();
    }

    /// How many connections were ever opened.
    pub fn connections(&self) -> usize {
        self.line.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.line.open().len()
    }

    /// How many bytes have passed.
    pub fn bytes(&self, way: Way) -> u64 {
        self.line.bytes[way as usize].load(Ordering::SeqCst)
    }
}

impl Line {
    fn connected(&self) -> Arc<Connection> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let connection = Arc::new(Connection {
            number,
            cut: Default::default(),
            frozen: Default::default(),
            half_closed: Default::default(),
        });
        self.open.lock().unwrap().push(Arc::downgrade(&connection));
        connection
    }

    fn open(&self) -> Vec<Arc<Connection>> {
        let mut open = self.open.lock().unwrap();
        open.retain(|connection| connection.strong_count() > 0);
        open.iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns how much of a chunk may pass behind the bytes that have `passed`, and the fault that strikes then.
    fn judge(&self, way: Way, connection: &Connection, passed: &[u8], chunk: &[u8]) -> (usize, Option<Fault>) {
        let mut verdict = (chunk.len(), None);
        self.armed.send_if_modified(|armed| {
            let Some((trap, fault)) = armed else { return false };
            let strikes = match trap {
                Trap::When(when) => match when.position(way, passed, chunk) {
                    Some(position) if position < chunk.len() => Some(position),
                    // The byte has not come yet.
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
    /// Returns where in this chunk the byte is. If the byte comes after the chunk, returns the chunk's end.
    fn position(&mut self, way: Way, passed: &[u8], chunk: &[u8]) -> Option<usize> {
        // The text may begin in the bytes that have passed.
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

/// Serves a connection from its arrival to its end. An end or a reset on one side is passed on to the other.
async fn forward(mut client: TcpStream, connection: Arc<Connection>, line: Arc<Line>) {
    let target = *line.target.lock().unwrap();
    let ended = match TcpStream::connect(target).await {
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
            // An empty chunk is the end.
            let ended = from.read_buf(&mut chunk).await? == 0;
            let due = Instant::now() + *line.latency.lock().unwrap();
            // Fails once this direction is closed. The chunk is then lost, as it should be.
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
            // The line is dropped after its connections, so this never fails.
            let _ = flowing.wait_for(|flowing| *flowing).await;
            if connection.frozen.is_cancelled() {
                std::future::pending().await
            }
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
