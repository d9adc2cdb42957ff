//! The clients' listener: accepts, serves the handshake, hands the socket to a shard.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdTcpListener},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, TcpSocket},
    sync::Notify,
    task::{AbortHandle, JoinSet, yield_now},
};

use crate::{
    delivery::{shard::Newcomer, sockopt},
    entry::{
        EntryContext,
        early_socket::EarlySocket,
        handshake::{Attempt, Handshake},
        waiting::{Connection, Waiting, Young},
    },
    fair_pool::{FairPlace, FairPool, Sharer, network},
    memory,
    serve::{ACCEPT_PAUSE, HalfOpen},
    shutdown::Stop,
};

/// Most connections that wait to be accepted. Current kernels have the same limit (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// Most bytes of a request's line and headers.
const MAX_REQUEST: usize = 16 << 10;

/// How long a connection without a request is safe from being cut when the relay is crowded. An honest client sends its
/// request within a second.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that are accepted before handshakes go on.
const ACCEPTED_AT_ONCE: usize = 64;
/// Most handshakes at once that are young. Other connections wait, without anything being kept for them.
const YOUNG: usize = 512;
/// Handshakes that begin before those under way go on. Only then is it known which tenant each is for, so they are
/// many: who is behind them waits for its own tenant's turn alone.
const BEGUN_AT_ONCE: usize = 64;
/// How long a handshake is young. One that nothing holds takes less.
const YOUTH: Duration = Duration::from_millis(100);
/// Handshakes at once that make a storm. A storm leaves the allocator with megabytes of free memory, which go back to
/// the system [`FIRST_ANSWERS`] after fewer than [`CALM`] are left.
const STORM: usize = 256;
const CALM: usize = 64;
/// Time in which a storm's last clients get their first answers. What these have taken is free then, too: some 250 bytes
/// a client.
const FIRST_ANSWERS: Duration = Duration::from_secs(1);

/// A bound listener. Its sockets send without Nagle's delay, and keep few bytes unsent. One of `[::]` takes IPv4, too,
/// unless another one is to do so at the same port.
pub fn bind(address: SocketAddr, others: &[SocketAddr]) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        let is_other = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port() && address.port() != 0;
        set_ipv6_v6only(&socket, others.iter().any(is_other))?;
    }
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit both. Some systems lack them, and clients are served all the same.
    tell_refused(socket.set_nodelay(true), "TCP_NODELAY", "small messages may wait for others");
    let cost = "the system may keep megabytes for each client that does not read, as net.ipv4.tcp_wmem says";
    tell_refused(sockopt::bound_unsent(&socket), "TCP_NOTSENT_LOWAT", cost);
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Says what it costs that the system has refused an option of a listener.
fn tell_refused(set: io::Result<()>, option: &str, cost: &str) {
    if let Err(error) = set {
        tracing::warn!(option, %error, "the system refuses a socket option: {cost}");
    }
}

/// One of the clients' listeners. What it accepts is not watched yet.
pub struct ClientListener {
    pub address: SocketAddr,
    listener: AsyncFd<StdTcpListener>,
}

impl ClientListener {
    #[expect(deprecated, reason = "it is unsound for what may close its descriptor meanwhile, and this cannot")]
    pub fn open(address: SocketAddr, listener: TcpListener) -> io::Result<Self> {
        Ok(Self { address, listener: AsyncFd::new(listener.into_std()?)? })
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Connection>> {
        loop {
            let mut ready = ready!(self.listener.poll_read_ready(context))?;
            // An error means that nobody waits to be accepted.
            if let Ok(accepted) = ready.try_io(|listener| listener.get_ref().accept()) {
                let (socket, peer) = accepted?;
                socket.set_nonblocking(true)?;
                return Poll::Ready(Ok((socket, peer)));
            }
        }
    }
}

/// Accepts connections until the relay stops. Handshakes under way are then cut, while clients stay in their shards.
///
/// Connections are accepted as they come, since the system has room for few, and their handshakes begin no faster than
/// others end: by then, the request has come too.
pub async fn run(listeners: Vec<ClientListener>, context: Arc<EntryContext>, mut stop: Stop) {
    let mut handshakes = Handshakes::new(context);
    let (mut next, mut has_more) = (0, false);
    // Not one after another with those under way: it is not known yet which tenant waits here.
    loop {
        tokio::select! {
            accepted = accept(&listeners, &mut next), if handshakes.accept_again.is_none() => {
                handshakes.accepted(accepted, &listeners, &mut next);
            }
            () = pause(handshakes.accept_again), if handshakes.accept_again.is_some() => handshakes.accept_again = None,
            () = handshakes.grown.notified(), if !handshakes.waiting.is_empty() => {}
            () = yield_now(), if has_more => {}
            // Without a handshake to wait for, this branch is off, and the select waits for the others.
            Some(_) = handshakes.tasks.join_next(), if handshakes.storm => {}
            () = stop.wait() => return handshakes.tasks.shutdown().await,
        }
        has_more = (0..BEGUN_AT_ONCE).all(|_| handshakes.begin_next());
        handshakes.forget_finished();
        handshakes.end_storm();
    }
}

async fn pause(until: Option<tokio::time::Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

/// Accepts from each listener in turn.
async fn accept(listeners: &[ClientListener], next: &mut usize) -> io::Result<Connection> {
    poll_fn(|context| {
        for _ in 0..listeners.len() {
            *next = (*next + 1) % listeners.len();
            if let Some(Poll::Ready(accepted)) = listeners.get(*next).map(|listener| listener.poll_accept(context)) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

/// The handshakes of a listener.
struct Handshakes {
    context: Arc<EntryContext>,
    tasks: JoinSet<()>,
    waiting: Waiting,
    /// When to accept again: there are no descriptors, for one. `None`: now.
    accept_again: Option<tokio::time::Instant>,
    /// Places of young handshakes, by address. Notified when one is given back.
    young: Arc<FairPool<Sharer>>,
    grown: Arc<Notify>,
    /// Oldest first. A finished handshake is taken out when it gets to the front.
    under_way: VecDeque<UnderWay>,
    /// Whether there has been a storm, and no calm since.
    storm: bool,
    /// Gives memory back after a storm.
    trims: JoinSet<()>,
}

/// A handshake that was under way when it was last looked at.
struct UnderWay {
    task: AbortHandle,
    attempt: Arc<Attempt>,
    since: Instant,
}

impl Handshakes {
    fn new(context: Arc<EntryContext>) -> Self {
        Self {
            young: FairPool::new(YOUNG.min(context.max_handshakes.div_ceil(2))),
            grown: Arc::default(),
            context,
            tasks: JoinSet::new(),
            waiting: Waiting::default(),
            accept_again: None,
            under_way: VecDeque::new(),
            storm: false,
            trims: JoinSet::new(),
        }
    }

    /// Has a connection wait, and those behind it.
    fn accepted(&mut self, first: io::Result<Connection>, listeners: &[ClientListener], next: &mut usize) {
        let mut accepted = Some(first);
        for _ in 0..ACCEPTED_AT_ONCE {
            match accepted.or_else(|| accept(listeners, next).now_or_never()) {
                Some(Ok(connection)) => self.let_wait(connection),
                Some(Err(error)) => return self.not_accepted(&error),
                None => return,
            }
            accepted = None;
        }
    }

    /// Has a connection wait for its handshake. Those that wait may become clients, so there is room for as many as
    /// that. Over it, the connection is closed.
    fn let_wait(&mut self, connection: Connection) {
        let context = &self.context;
        let sockets = context.total.load(Ordering::Relaxed) + self.tasks.len();
        let most = (context.max_clients + context.max_handshakes).saturating_sub(sockets);
        let address = connection.1.ip();
        if self.waiting.has_room(address, most, context.proxies.trust(address)) {
            self.waiting.push(connection);
        } else {
            context.metrics.handshake_refused("crowded");
        }
    }

    fn not_accepted(&mut self, error: &io::Error) {
        self.context.metrics.handshake_refused("accept");
        // If only this connection is gone, there is no reason to wait.
        if error.kind() != io::ErrorKind::ConnectionAborted {
            tracing::warn!(%error, "a connection could not be accepted");
            self.cut_silent(Duration::ZERO, None);
            self.accept_again = Some(tokio::time::Instant::now() + ACCEPT_PAUSE);
        }
    }

    /// Begins the next handshake. While there are very many, its connection is closed. `false`: none may begin.
    fn begin_next(&mut self) -> bool {
        if self.young.free() == 0 {
            return false;
        }
        let Self { waiting, young, grown, context, .. } = self;
        let next = waiting.next(|address| {
            let place = young.take(Sharer::address(address), context.most_of(address))?;
            Some(Young::new(place, grown))
        });
        let Some(((socket, peer), young)) = next else { return false };
        let context = Arc::clone(&self.context);
        let place = self.place(peer.ip());
        // Clients that are told to come again later take a handshake, too, so their number has a bound: half of all.
        let placed = context.max_handshakes - context.handshakes.free();
        let is_full = self.tasks.len() >= context.max_handshakes + placed;
        if place.is_none() && is_full && !self.cut_silent(Duration::ZERO, Some(peer.ip())) {
            context.metrics.handshake_refused("crowded");
            return true;
        }
        if self.under_way.len() > 2 * self.tasks.len().max(CALM) {
            self.under_way.retain(|under_way| !under_way.task.is_finished());
        }
        let attempt = Arc::new(Attempt::new(context, peer.ip(), place, young));
        let task = self.tasks.spawn(handshake(EarlySocket::new(socket), Arc::clone(&attempt)));
        self.under_way.push_back(UnderWay { task, attempt, since: Instant::now() });
        if self.tasks.len() >= STORM {
            self.storm = true;
            // Its own end is soon enough.
            self.trims.abort_all();
        }
        true
    }

    /// Takes a place for a connection from this address. If the address has as many as it may, or all are taken, a
    /// connection that says nothing makes room: one of the same address, or else any. `None`: there is none.
    fn place(&mut self, address: IpAddr) -> Option<FairPlace<Sharer>> {
        let sharer = Sharer::address(address);
        let most = self.context.most_of(address);
        let pool = Arc::clone(&self.context.handshakes);
        pool.take(sharer.clone(), most).or_else(|| {
            let cut = self.cut_silent(PATIENCE, Some(address)) || pool.free() == 0 && self.cut_silent(PATIENCE, None);
            cut.then(|| pool.take(sharer, most)).flatten()
        })
    }

    /// Makes room by cutting the oldest connection that has sent no request for `patience`, if one is named from this
    /// address. Returns whether there was one. Connections with a request are left alone: they wait for the tenant's
    /// code, or for their turn. If all have one, a new client is told to come again later.
    fn cut_silent(&mut self, patience: Duration, from: Option<IpAddr>) -> bool {
        let (now, from) = (Instant::now(), from.map(network));
        // They are in the order of their age.
        let old = self.under_way.partition_point(|under_way| now - under_way.since >= patience);
        let silent = |under_way: &UnderWay| {
            !under_way.task.is_finished()
                && !under_way.attempt.has_requested()
                && from.is_none_or(|from| from == network(under_way.attempt.peer))
        };
        let oldest = self.under_way.iter().take(old).position(silent);
        let Some(oldest) = oldest.and_then(|oldest| self.under_way.remove(oldest)) else { return false };
        oldest.task.abort();
        oldest.attempt.leave();
        if !oldest.attempt.had_preflights() {
            self.context.metrics.handshake_refused("crowded");
        }
        true
    }

    fn forget_finished(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.trims.try_join_next().is_some() {}
        while self.under_way.front().is_some_and(|oldest| oldest.task.is_finished()) {
            self.under_way.pop_front();
        }
    }

    /// Gives a storm's memory back, once few of its handshakes are left, and its clients have had their first answers.
    fn end_storm(&mut self) {
        if self.storm && self.tasks.len() < CALM {
            self.storm = false;
            self.trims.spawn(async {
                tokio::time::sleep(FIRST_ANSWERS).await;
                // An error means that the relay ends.
                drop(tokio::task::spawn_blocking(memory::trim).await);
            });
        }
    }
}

async fn handshake(socket: EarlySocket, attempt: Arc<Attempt>) {
    serve(socket, &attempt).await;
    attempt.leave();
}

async fn serve(socket: EarlySocket, attempt: &Arc<Attempt>) {
    let context = &attempt.context;
    let asked = Arc::clone(attempt);
    let answers = move || asked.answers();
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(HalfOpen::new(socket, answers)), Handshake(Arc::clone(attempt)));
    let served = poll_fn(|context| match connection.poll_without_shutdown(context) {
        // The shard writes this answer, head and all.
        Poll::Pending if attempt.is_answered_by_shard() => Poll::Ready(Ok(())),
        polled => polled,
    });
    tokio::pin!(served);
    let (mut may_go_on, mut is_young) = (true, true);
    let mut time = YOUTH.min(context.handshake_timeout);
    loop {
        match tokio::time::timeout(time, served.as_mut()).await {
            Err(_) if std::mem::take(&mut is_young) => {
                attempt.grow_up();
                time = context.handshake_timeout - time;
            }
            Ok(Ok(())) => break,
            // A browser keeps the connection of a preflight for what may come.
            Ok(Err(_)) | Err(_) if attempt.had_preflights() => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "handshake failed");
                return context.metrics.handshake_refused("http");
            }
            // The request behind it has as much time again.
            Err(_) if attempt.has_had_preflights() && std::mem::take(&mut may_go_on) => {
                time = context.handshake_timeout
            }
            Err(_) => return context.metrics.handshake_refused("timeout"),
        }
    }
    let Some(accepted) = attempt.accepted() else { return };
    let parts = connection.into_parts();
    // Copied, because even an empty buffer would keep hyper's 8 KiB.
    let leftover = parts.read_buf.to_vec();
    drop(parts.read_buf);
    match parts.io.into_inner().into_inner().into_std() {
        Ok(socket) => hand_over(context, Newcomer { socket, leftover, accepted }).await,
        Err(error) => tracing::warn!(%error, "a client's socket could not be handed over"),
    }
}

/// Hands a client to its shard, with those whose handshakes end meanwhile: a thread is woken for all of them once.
async fn hand_over(context: &EntryContext, newcomer: Newcomer) {
    if context.arrived.push(newcomer) {
        let _all = Arrived(context);
        yield_now().await;
    }
}

/// The clients that have arrived go to their shards when this is dropped.
struct Arrived<'c>(&'c EntryContext);

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        let mut all = Vec::new();
        self.0.arrived.take(&mut all);
        all.into_iter().for_each(|newcomer| self.0.shards.adopt(newcomer));
    }
}
