//! The tenant that must not notice: it passes a hundred messages a second to a client, answers an API call every 20 ms,
//! and gets a new client every 100 ms. Each has a thread of its own, with blocking sockets, so that nothing else of the
//! test delays it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use support::{raw::request, relay::Relay};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer of the admin listener, and the time between two questions.
const ADMIN: Duration = Duration::from_secs(1);
const ADMIN_PAUSE: Duration = Duration::from_millis(50);

/// What is measured, and how often it happens.
pub const KINDS: [(&str, Duration); 3] = [
    ("deliveries", Duration::from_millis(10)),
    ("API calls", Duration::from_millis(20)),
    ("handshakes", Duration::from_millis(100)),
];

pub struct Neighbour {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// When each message was sent, by its number.
    sent: Mutex<Vec<Instant>>,
    /// For each kind: when it was due, and how long it took from then on.
    samples: [Mutex<Vec<(Instant, Duration)>>; 3],
}

impl Neighbour {
    /// `upstream`: the partner's end of its connection. `path`: what its API is asked for.
    pub fn start(relay: &Relay, upstream: TcpStream, path: &'static str) -> Self {
        let (clients, api, admin) = (relay.clients, relay.api(), relay.admin());
        let shared = Arc::<Shared>::default();
        // Connected before the first message is sent.
        let client = connect(clients, "/neighbour");
        let run = |work: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared))
        };
        let threads = vec![
            run(Box::new(move |shared| shared.feed(upstream))),
            run(Box::new(move |shared| shared.receive(client))),
            run(Box::new(move |shared| shared.call(api, path))),
            run(Box::new(move |shared| shared.shake_hands(clients))),
            run(Box::new(move |shared| shared.ask_admin(admin))),
        ];
        Self { shared, threads }
    }

    /// What was due between two times, for each kind. Waits until all of it has come.
    pub fn samples(&self, from: Instant, to: Instant) -> [Vec<Duration>; 3] {
        let deadline = Instant::now() + PATIENCE;
        [0, 1, 2].map(|kind| {
            loop {
                {
                    let samples = self.shared.samples[kind].lock().unwrap();
                    if samples.last().is_some_and(|(due, _)| *due >= to) {
                        let within = samples.iter().filter(|(due, _)| (from..to).contains(due));
                        return within.map(|(_, time)| *time).collect();
                    }
                }
                assert!(Instant::now() < deadline, "{} have stopped", KINDS[kind].0);
                thread::sleep(Duration::from_millis(5));
            }
        })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "a thread of the neighbour panicked");
        }
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Does something each time that it is due, and notes how long it took from then on.
    fn repeat(&self, kind: usize, mut act: impl FnMut()) {
        let mut due = Instant::now();
        while self.goes_on() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            act();
            self.samples[kind].lock().unwrap().push((due, due.elapsed()));
            // What was missed meanwhile is not made up for.
            due = (due + KINDS[kind].1).max(Instant::now());
        }
    }

    fn feed(&self, mut upstream: TcpStream) {
        let mut due = Instant::now();
        while self.goes_on() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let text = {
                let mut sent = self.sent.lock().unwrap();
                sent.push(Instant::now());
                format!("{:08} neighbour", sent.len() - 1)
            };
            let mut frame = vec![0x81, text.len() as u8];
            frame.extend_from_slice(text.as_bytes());
            upstream.write_all(&frame).unwrap();
            due = (due + KINDS[0].1).max(Instant::now());
        }
    }

    /// Checks that every message comes, in order.
    fn receive(&self, mut client: BufReader<TcpStream>) {
        let mut number = 0;
        client.get_ref().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while self.goes_on() {
            let mut frame = [0; 20];
            match client.read_exact(&mut frame) {
                Ok(()) => {}
                // Messages are so small that they come whole.
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
                Err(error) => panic!("the neighbour's client is lost: {error}"),
            }
            assert_eq!(String::from_utf8_lossy(&frame[2..]), format!("{number:08} neighbour"));
            let sent = self.sent.lock().unwrap()[number];
            self.samples[0].lock().unwrap().push((sent, sent.elapsed()));
            number += 1;
        }
    }

    fn call(&self, api: SocketAddr, path: &str) {
        let mut socket = BufReader::new(tcp(api));
        self.repeat(1, || {
            write!(socket.get_mut(), "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let head = head(&mut socket);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            socket.read_exact(&mut vec![0; length.expect("a length")]).unwrap();
        });
    }

    /// Checks that the admin listener answers within a second, again and again.
    fn ask_admin(&self, admin: SocketAddr) {
        while self.goes_on() {
            let asked = Instant::now();
            let mut socket = tcp(admin);
            write!(socket, "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).unwrap();
            let took = asked.elapsed();
            let status = String::from_utf8_lossy(&answer[..answer.len().min(15)]);
            assert!(
                status == "HTTP/1.1 200 OK" && took < ADMIN,
                "the admin listener answered {status:?} after {took:?}"
            );
            thread::sleep(ADMIN_PAUSE);
        }
    }

    fn shake_hands(&self, clients: SocketAddr) {
        self.repeat(2, || drop(connect(clients, "/neighbour")));
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Connects a WebSocket client.
fn connect(clients: SocketAddr, path: &str) -> BufReader<TcpStream> {
    let mut socket = BufReader::new(tcp(clients));
    socket.get_mut().write_all(request(clients, path).as_bytes()).unwrap();
    let head = head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

/// Reads the head of an answer.
fn head(socket: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(socket.read_line(&mut head).unwrap() > 0, "the connection has ended: {head}");
    }
    head
}
