//! A tenant that does nothing wrong and uses as much of the processor as an attack does: messages for a hundred
//! clients.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::setpriority_process;
use support::crowd::Crowd;

use crate::senders::NICE;

const CLIENTS: usize = 100;
/// Time between two bursts of its messages.
const PACE: Duration = Duration::from_micros(250);
/// Bytes of a message.
const PAYLOAD: usize = 18;
/// The most messages a second. Its clients have to be served, too.
const MOST: f64 = 20_000.0;

pub struct Honest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    works: AtomicBool,
    /// Messages a second, as the bits of a float.
    rate: AtomicU64,
}

impl Honest {
    /// `upstream`: the partner's end of its connection.
    pub fn start(clients: SocketAddr, upstream: TcpStream) -> Self {
        let shared = Arc::<Shared>::default();
        let connect = move || {
            setpriority_process(None, NICE).unwrap();
            // Its own thread is as nice as this one.
            Crowd::connect(clients, "/honest", CLIENTS, PAYLOAD)
        };
        let crowd = thread::spawn(connect).join().unwrap();
        let worker = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || worker.feed(upstream, &crowd)));
        let honest = Self { shared, thread };
        honest.set_rate(1000.0);
        honest
    }

    /// Works from now on, or rests.
    pub fn works(&self, works: bool) {
        self.shared.works.store(works, Ordering::Relaxed);
    }

    /// Works at this rate, in messages a second.
    pub fn works_at(&self, rate: f64) {
        self.set_rate(rate);
        self.works(true);
    }

    /// Comes nearer to a use of the processor: it has used `used`, and should have used `wanted`.
    pub fn adjust(&self, used: f64, wanted: f64) {
        let rate = f64::from_bits(self.shared.rate.load(Ordering::Relaxed));
        self.set_rate(rate * (wanted / used.max(0.01)).clamp(0.2, 5.0));
    }

    fn set_rate(&self, rate: f64) {
        self.shared.rate.store(rate.clamp(10.0, MOST).to_bits(), Ordering::Relaxed);
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the honest tenant's thread panicked");
    }
}

impl Shared {
    fn feed(&self, mut upstream: TcpStream, crowd: &Crowd) {
        let (mut owed, mut due) = (0.0, Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + PACE).max(Instant::now());
            if !self.works.load(Ordering::Relaxed) {
                continue;
            }
            owed += f64::from_bits(self.rate.load(Ordering::Relaxed)) * PACE.as_secs_f64();
            let mut frames = Vec::new();
            while owed >= 1.0 {
                owed -= 1.0;
                let text = format!("{:08} honestly.", crowd.number());
                frames.extend([0x81, PAYLOAD as u8]);
                frames.extend_from_slice(&text.as_bytes()[..PAYLOAD]);
            }
            upstream.write_all(&frames).unwrap();
        }
    }
}
