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
    time::Duration,
};

use rustix::process::setpriority_process;
use tokio::time::sleep;

use crate::scene::Scene;

/// The niceness of the senders' threads.
const NICE: i32 = 15;

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
        let end = async |_: &_| {
            self.on.store(false, Ordering::Relaxed);
            // What is in the sockets is read.
            sleep(Duration::from_millis(200)).await;
        };
        scene.undisturbed_by(begin, async || std::future::pending().await, end).await;
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// Runs something as on another machine: what partners and clients do costs the relay's neighbours nothing here either.
fn nice(run: impl FnOnce()) {
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

/// Reads to the end.
fn drain(mut socket: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while socket.read(&mut buffer).is_ok_and(|length| length > 0) {}
}
