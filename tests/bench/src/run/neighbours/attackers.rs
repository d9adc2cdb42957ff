//! Threads that make the hostile tenant's code run when they are told to.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::Signal;

use super::attack::{Attack, TENANT, Way};
use crate::{
    failure::{Context, Failure},
    frame, handshake,
    run::{
        host::{Folder, Host},
        partner::{self, Partner},
    },
};

/// Clients and requests at once: more than the tenant has instances.
const AT_ONCE: usize = 12;
/// How long each of them waits for an answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// Pause between two messages to the hostile filter.
const PACE: Duration = Duration::from_millis(2);
/// Pause between two looks at whether to attack.
const LOOK: Duration = Duration::from_millis(10);
const SWAPS: &str = "edge_relay_tenant_swaps_total";

pub struct Attackers<'a> {
    attack: Attack,
    partner: Arc<Partner>,
    folder: &'a Folder,
    orders: Arc<Orders>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders {
    attack: AtomicBool,
    end: AtomicBool,
}

impl<'a> Attackers<'a> {
    pub fn new(attack: Attack, host: &Host, partner: Partner, folder: &'a Folder) -> Self {
        let (partner, orders) = (Arc::new(partner), Arc::<Orders>::default());
        let (clients, api) = (host.clients, host.api);
        let start = |act: Box<dyn FnMut() + Send>| {
            let orders = Arc::clone(&orders);
            thread::spawn(move || orders.follow(act))
        };
        let at_once = |act: fn(SocketAddr), address| (0..AT_ONCE).map(move |_| Box::new(move || act(address)) as _);
        let threads = match attack.way() {
            Way::Messages => {
                let (partner, mut upstream) = (Arc::clone(&partner), None);
                vec![start(Box::new(move || feed(&partner, &mut upstream)))]
            }
            Way::Clients => at_once(knock, clients).map(start).collect(),
            Way::Requests => at_once(request, api).map(start).collect(),
            Way::Schedules => Vec::new(),
        };
        Self { attack, partner, folder, orders, threads }
    }

    pub fn set(&self, attacks: bool, host: &Host) -> Result<(), Failure> {
        self.orders.attack.store(false, Ordering::Relaxed);
        // Schedules come with the manifest. A filter that broke pauses until its tenant has a new manifest.
        if matches!(self.attack.way(), Way::Schedules | Way::Messages) {
            let swapped = host.metric(SWAPS)?;
            self.folder.manifest(TENANT, &self.attack.manifest(&self.partner, attacks))?;
            host.process.signal(Signal::HUP)?;
            host.reaches(SWAPS, swapped + 1.0)?;
        }
        self.orders.attack.store(attacks, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Attackers<'_> {
    fn drop(&mut self) {
        self.orders.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Orders {
    fn follow(&self, mut act: impl FnMut()) {
        while !self.end.load(Ordering::Relaxed) {
            match self.attack.load(Ordering::Relaxed) {
                true => act(),
                false => thread::sleep(LOOK),
            }
        }
    }
}

/// Sends a message to the filter. A connection that ended is replaced by the next.
fn feed(partner: &Partner, upstream: &mut Option<TcpStream>) {
    if upstream.is_none() {
        *upstream = partner.accept().ok();
    }
    if upstream.as_mut().is_none_or(|upstream| partner::send(upstream, b"bait").is_err()) {
        *upstream = None;
    }
    thread::sleep(PACE);
}

/// Connects a client and leaves. Whether it is answered does not matter here.
fn knock(address: SocketAddr) {
    let knocking = || -> Result<(), Failure> {
        let mut socket = patient(address)?;
        handshake::ask(&mut socket, &format!("/{TENANT}?channel=main"))?;
        let mut bytes = Vec::new();
        frame::header(frame::TEXT, true, 5, &mut bytes);
        bytes.extend_from_slice(b"hello");
        socket.write_all(&bytes).context("a message")
    };
    let _ = knocking();
}

fn request(address: SocketAddr) {
    let requesting = || -> Result<(), Failure> {
        let mut socket = patient(address)?;
        let request = format!("GET /{TENANT}/loop HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).context("a request")?;
        socket.read_to_end(&mut Vec::new()).context("an answer").map(drop)
    };
    let _ = requesting();
}

fn patient(address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = TcpStream::connect(address).context(address)?;
    socket.set_read_timeout(Some(PATIENCE)).context("a socket")?;
    Ok(socket)
}
