//! An HTTP server that components send requests to. It answers as the path says, well or badly.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::until;

/// The bytes sent at a time of a long body.
const PART: [u8; 16 << 10] = [b'x'; 16 << 10];

/// A server that ends with the test.
pub struct Origin {
    pub address: SocketAddr,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    /// How many connections were accepted.
    accepted: AtomicUsize,
    /// How many connections have ended.
    ended: AtomicUsize,
    /// How many bytes of bodies were sent.
    sent: AtomicUsize,
}

impl Origin {
    pub async fn start(address: impl Into<IpAddr>) -> Self {
        Self::serve(address.into(), None).await
    }

    pub async fn start_tls(address: impl Into<IpAddr>, acceptor: TlsAcceptor) -> Self {
        Self::serve(address.into(), Some(acceptor)).await
    }

    async fn serve(address: IpAddr, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&counts);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                counted.accepted.fetch_add(1, SeqCst);
                let (counts, acceptor) = (Arc::clone(&counted), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => connection(socket, &counts).await,
                        Some(acceptor) => {
                            if let Ok(socket) = acceptor.accept(socket).await {
                                connection(socket, &counts).await;
                            }
                        }
                    }
                    counts.ended.fetch_add(1, SeqCst);
                });
            }
        });
        Self { address, counts, _tasks: tasks }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.counts.accepted.load(SeqCst)
    }

    /// How many bytes of bodies were sent so far.
    pub fn sent(&self) -> usize {
        self.counts.sent.load(SeqCst)
    }

    /// Waits until this many connections were accepted, and all of them have ended.
    pub async fn served(&self, connections: usize) {
        until(format!("{connections} connections that have gone"), async || {
            let (accepted, ended) = (self.connections(), self.counts.ended.load(SeqCst));
            if (accepted, ended) == (connections, connections) { Ok(()) } else { Err(format!("{ended}/{accepted}")) }
        })
        .await;
    }
}

/// Serves one request. Anything that the client does may end it.
async fn connection(socket: impl AsyncRead + AsyncWrite + Unpin, counts: &Counts) {
    let mut socket = BufReader::new(socket);
    let _ = serve(&mut socket, counts).await;
    let _ = socket.shutdown().await;
}

async fn serve(socket: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>, counts: &Counts) -> std::io::Result<()> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if socket.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = || query.parse::<usize>().unwrap();
    match path {
        "/redirect" => {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: http://{query}\r\nContent-Length: 0\r\n\r\n");
            socket.write_all(head.as_bytes()).await
        }
        "/big" => {
            socket.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", number()).as_bytes()).await?;
            body(socket, number(), counts).await
        }
        "/endless" => {
            socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            body(socket, usize::MAX, counts).await
        }
        "/half" => socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await,
        "/nonsense" => socket.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").await,
        "/heads" => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nX: ").await?;
            body(socket, usize::MAX, counts).await
        }
        // In one write, so that one read may get all of it.
        "/large-head" => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "x".repeat(90 << 10));
            socket.write_all(head.as_bytes()).await
        }
        "/close" => Ok(()),
        "/silent" => silence(socket).await,
        "/stalls" => {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await?;
            silence(socket).await
        }
        "/count" => {
            let length = length(socket).await?;
            answer(socket, &length.to_string()).await
        }
        "/head" => answer(socket, &head).await,
        _ => answer(socket, "the origin").await,
    }
}

async fn answer(socket: &mut (impl AsyncWrite + Unpin), text: &str) -> std::io::Result<()> {
    let length = text.len();
    socket.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").as_bytes()).await
}

async fn body(socket: &mut (impl AsyncWrite + Unpin), mut left: usize, counts: &Counts) -> std::io::Result<()> {
    while left > 0 {
        let length = left.min(PART.len());
        socket.write_all(&PART[..length]).await?;
        counts.sent.fetch_add(length, SeqCst);
        left -= length;
    }
    Ok(())
}

/// Sends nothing until the client goes.
async fn silence(socket: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut nothing = [0; 64];
    while socket.read(&mut nothing).await? > 0 {}
    Ok(())
}

/// Reads a chunked body to its end, and returns its length.
async fn length(socket: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<usize> {
    let mut total = 0;
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await?;
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        socket.read_exact(&mut chunk).await?;
        total += length;
        if length == 0 {
            return Ok(total);
        }
    }
}
