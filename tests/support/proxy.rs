//! A TCP proxy between a relay and its partner that counts connections and holds back what the partner sends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub struct Proxy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Proxy {
    /// The handshake passes; all else that the partner sends waits until [`Proxy::open`].
    pub async fn start(partner: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (open, opened) = watch::channel(false);
        let mut task = JoinSet::new();
        let counted = Arc::clone(&connections);
        task.spawn(async move {
            let mut forwarding = JoinSet::new();
            loop {
                let (relay, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                forwarding.spawn(forward(relay, partner, opened.clone()));
            }
        });
        Self { address, connections, open, _task: task }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Connections that were ever opened.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn forward(relay: TcpStream, partner: SocketAddr, mut opened: watch::Receiver<bool>) {
    let (mut from_relay, mut to_relay) = relay.into_split();
    let (mut from_partner, mut to_partner) = TcpStream::connect(partner).await.unwrap().into_split();
    let up = async {
        let _ = copy(&mut from_relay, &mut to_partner).await;
        let _ = to_partner.shutdown().await;
    };
    let down = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(from_partner.read_u8().await.unwrap());
        }
        to_relay.write_all(&head).await.unwrap();
        opened.wait_for(|open| *open).await.unwrap();
        let _ = copy(&mut from_partner, &mut to_relay).await;
        let _ = to_relay.shutdown().await;
    };
    tokio::join!(up, down);
}
