//! Sockets that send as fast as they are read, while they are told to.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{net::sockopt::set_socket_send_buffer_size, process::setpriority_process};
use tokio::time::sleep;

use crate::scene::Scene;

/// The niceness of the senders' threads.
pub const NICE: i32 = 15;
/// Size of their sockets' send buffers, unless a message is larger than what one write has of small ones. What is in
/// them when the senders stop is yet to be read.
const BUFFER: usize = 16 << 10;
/// Bytes of one write of small frames.
const WRITE: usize = 64 << 10;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Something that a thread does again and again while it is told to.
pub struct Repeated {
    shared: Arc<Switches>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Switches {
    on: AtomicBool,
    ended: AtomicBool,
    /// Whether it is being done.
    busy: AtomicBool,
}

impl Repeated {
    pub fn start(mut act: impl FnMut() + Send + 'static) -> Self {
        let shared = Arc::<Switches>::default();
        let switches = Arc::clone(&shared);
        let run = move || {
            while !switches.ended.load(Ordering::Relaxed) {
                switches.busy.store(true, Ordering::SeqCst);
                let on = switches.on.load(Ordering::SeqCst);
                if on {
                    act();
                }
                switches.busy.store(false, Ordering::SeqCst);
                if !on {
                    thread::park();
                }
            }
        };
        Self { shared, thread: thread::spawn(move || nice(run)) }
    }

    pub fn turn(&self, on: bool) {
        self.shared.on.store(on, Ordering::SeqCst);
        self.thread.thread().unpark();
    }

    /// Turns it off, and waits until it is no longer being done.
    pub async fn rest(&self) {
        self.turn(false);
        let began = Instant::now();
        while self.shared.busy.load(Ordering::SeqCst) && !self.thread.is_finished() {
            assert!(began.elapsed() < PATIENCE, "it is still being done");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the thread, and panics if it has.
    pub fn end(self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap();
    }
}

/// Checks that the neighbour is undisturbed while all of these are done.
pub async fn check_beside(scene: &mut Scene, all: Vec<Repeated>) {
    let begin = async |_: &_| all.iter().for_each(|one| one.turn(true));
    let end = async |_: &_| {
        all.iter().for_each(|one| one.turn(false));
        for one in &all {
            one.rest().await;
        }
    };
    scene.undisturbed_by(begin, async || std::future::pending().await, end).await;
    all.into_iter().for_each(Repeated::end);
}

pub struct Senders {
    sending: Vec<Repeated>,
}

impl Senders {
    /// Each socket sends these bytes again and again. What comes back is read and dropped.
    pub fn start(sockets: Vec<TcpStream>, flood: &[u8]) -> Self {
        let mut sending = Vec::new();
        for mut socket in sockets {
            let buffer = if flood.len() > WRITE { flood.len() } else { BUFFER };
            set_socket_send_buffer_size(&socket, buffer).unwrap();
            // A relay that reads no more does not hold the test up.
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            let reads = socket.try_clone().unwrap();
            thread::spawn(move || nice(|| drain(reads)));
            let flood = flood.to_vec();
            sending.push(Repeated::start(move || socket.write_all(&flood).unwrap()));
        }
        Self { sending }
    }

    /// Checks that the neighbour is undisturbed while they send.
    pub async fn check(self, scene: &mut Scene) {
        check_beside(scene, self.sending).await;
    }
}

/// Runs something as on another machine: what partners and clients do costs the relay's neighbours nothing here either.
pub fn nice(run: impl FnOnce()) {
    setpriority_process(None, NICE).unwrap();
    run();
}

/// A frame again and again, as much as one write has.
pub fn many(frame: &[u8]) -> Vec<u8> {
    frame.repeat(WRITE / frame.len())
}

/// Reads to the end.
fn drain(mut socket: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while socket.read(&mut buffer).is_ok_and(|length| length > 0) {}
}
