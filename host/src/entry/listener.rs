//! The clients' listener: accepts, serves the handshake, hands the socket to a shard.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::{
    delivery::{shard::Newcomer, sockopt},
    entry::{
        EntryContext,
        handshake::{Attempt, Handshake},
    },
    memory,
    shutdown::Stop,
};

/// Connections that wait to be accepted: the kernel's own limit (`net.core.somaxconn`) on current systems.
const BACKLOG: u32 = 4096;
/// Bytes of a request's line and headers.
const MAX_REQUEST: usize = 16 << 10;
/// Pause after `accept` failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An honest client makes its request within a second of its connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many handshakes at once leave megabytes to the allocator; they are given back when there are few again.
const STORM: usize = 512;
const CALM: usize = 64;

/// A bound listener, its sockets without Nagle's delay and with little unsent.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it.
    socket.set_nodelay(true)?;
    sockopt::bound_unsent(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until told to stop. Handshakes under way are then cut; clients live on in their shards.
pub async fn run(listener: TcpListener, context: Arc<EntryContext>, mut stop: Stop) {
    let mut handshakes = JoinSet::new();
    // Oldest first; those that are done are taken out when they come to the front.
    let mut under_way: VecDeque<UnderWay> = VecDeque::new();
    let mut storm = false;
    let mut trims = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // None is left to wait for: the select goes on with the others.
            Some(_) = handshakes.join_next(), if storm => {
                if handshakes.len() < CALM {
                    storm = false;
                    trims.spawn_blocking(memory::trim);
                }
                continue;
            }
            () = stop.wait() => return handshakes.shutdown().await,
        };
        while handshakes.try_join_next().is_some() {}
        while trims.try_join_next().is_some() {}
        while under_way.front().is_some_and(|oldest| oldest.task.is_finished()) {
            under_way.pop_front();
        }
        match accepted {
            Ok((socket, peer)) => {
                let crowded =
                    handshakes.len() >= context.max_handshakes && !cut_silent(&mut under_way, PATIENCE, &context);
                // Those that are told to come later are bounded too.
                if handshakes.len() >= 2 * context.max_handshakes
                    && !cut_silent(&mut under_way, Duration::ZERO, &context)
                {
                    context.metrics.handshake_refused("crowded");
                    continue;
                }
                if under_way.len() > 2 * handshakes.len().max(CALM) {
                    under_way.retain(|under_way| !under_way.task.is_finished());
                }
                let attempt = Arc::new(Attempt::new(Arc::clone(&context), peer.ip(), crowded));
                let task = handshakes.spawn(handshake(socket, Arc::clone(&attempt)));
                under_way.push_back(UnderWay { task, attempt, since: Instant::now() });
                storm |= handshakes.len() >= STORM;
            }
            Err(error) => {
                context.metrics.handshake_refused("accept");
                // A connection that is gone already is no reason to wait.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!(%error, "a connection could not be accepted");
                    cut_silent(&mut under_way, Duration::ZERO, &context);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A handshake that may be under way.
struct UnderWay {
    task: AbortHandle,
    attempt: Arc<Attempt>,
    since: Instant,
}

/// Makes room by cutting the oldest connection that has made no request for so long. Those that have made one wait for the
/// tenant's code, or for their turn among many: they are left alone, and whoever comes then is told to come later.
fn cut_silent(under_way: &mut VecDeque<UnderWay>, patience: Duration, context: &EntryContext) -> bool {
    let silent = |under_way: &UnderWay| {
        !under_way.task.is_finished() && !under_way.attempt.has_asked() && under_way.since.elapsed() >= patience
    };
    let Some(oldest) = under_way.iter().position(silent).and_then(|oldest| under_way.remove(oldest)) else {
        return false;
    };
    oldest.task.abort();
    context.metrics.handshake_refused("crowded");
    true
}

async fn handshake(socket: TcpStream, attempt: Arc<Attempt>) {
    let context = &attempt.context;
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(socket), Handshake(Arc::clone(&attempt)));
    let served = poll_fn(|context| match connection.poll_without_shutdown(context) {
        // The head of the answer is the shard's to write.
        Poll::Pending if attempt.is_taken() => Poll::Ready(Ok(())),
        polled => polled,
    });
    match tokio::time::timeout(context.handshake_timeout, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            return context.metrics.handshake_refused("http");
        }
        Err(_) => return context.metrics.handshake_refused("timeout"),
    }
    let Some(accepted) = attempt.accepted() else { return };
    let parts = connection.into_parts();
    // Copied: even empty the buffer would keep hyper's 8 KiB.
    let leftover = parts.read_buf.to_vec();
    drop(parts.read_buf);
    match parts.io.into_inner().into_std() {
        Ok(socket) => context.shards.adopt(Newcomer { socket, leftover, accepted }),
        Err(error) => tracing::warn!(%error, "a client's socket could not be handed over"),
    }
}
