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
use support::relay::Relay;
use tokio::time::sleep;

use crate::scene::{Scene, processor_time};

/// The niceness of the senders' threads.
const NICE: i32 = 15;
/// Size of their sockets' send buffers, unless a message is larger than what one write has of small ones. What is in
/// them when the senders stop is yet to be read.
const BUFFER: usize = 16 << 10;
/// Bytes of one write of small frames.
const WRITE: usize = 64 << 10;
/// How much of a processor a relay uses that has nothing to read but the neighbour's messages.
const QUIET: f64 = 0.4;
/// How long it is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Senders {
    on: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    /// Each socket sends these bytes again and again. What comes back is read and dropped.
    pub fn start(sockets: Vec<TcpStream>, flood: &[u8]) -> Self {
        let (on, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let mut threads = Vec::new();
        for socket in sockets {
            let buffer = if flood.len() > WRITE { flood.len() } else { BUFFER };
            set_socket_send_buffer_size(&socket, buffer).unwrap();
            // A relay that reads no more does not hold the test up.
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            let reads = socket.try_clone().unwrap();
            thread::spawn(move || nice(|| drain(reads)));
            let (on, ended, flood) = (Arc::clone(&on), Arc::clone(&ended), flood.to_vec());
            threads.push(thread::spawn(move || nice(|| send(socket, &on, &ended, &flood))));
        }
        Self { on, ended, threads }
    }

    /// Checks that the neighbour is undisturbed while they send.
    pub async fn check(self, scene: &mut Scene) {
        let begin = async |_: &_| self.on.store(true, Ordering::Relaxed);
        let end = async |relay: &Relay| {
            self.on.store(false, Ordering::Relaxed);
            quiet(relay).await;
        };
        scene.undisturbed_by(begin, async || std::future::pending().await, end).await;
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// Waits until the relay has read what is in the sockets.
async fn quiet(relay: &Relay) {
    let began = Instant::now();
    loop {
        let before = processor_time(relay);
        sleep(LOOK).await;
        if processor_time(relay) - before < QUIET * LOOK.as_secs_f64() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "the relay is still at work");
    }
}

/// Runs something as on another machine: what partners and clients do costs the relay's neighbours nothing here either.
pub fn nice(run: impl FnOnce()) {
    setpriority_process(None, NICE).unwrap();
    run();
}

fn send(mut socket: TcpStream, on: &AtomicBool, ended: &AtomicBool, flood: &[u8]) {
    while !ended.load(Ordering::Relaxed) {
        if on.load(Ordering::Relaxed) {
            socket.write_all(flood).unwrap();
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
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
