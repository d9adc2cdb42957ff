//! The partner's side, for demonstrations and tests: a WebSocket server that plays a feed.
//!
//! Every connection gets the whole feed, from its start, once. Then it stays open, answering pings, until the peer
//! closes it. Nothing that the peer sends changes what is played.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Sink, SinkExt, StreamExt, stream::SplitSink};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config, tungstenite,
    tungstenite::{
        Message,
        handshake::server::{Callback, ErrorResponse, Request, Response},
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

pub mod recording;
mod simulated;

use crate::{feed::recording::Recorded, serve::ACCEPT_PAUSE};

/// Most connections at once. More wait in the kernel's backlog. A relay opens one.
const MAX_CONNECTIONS: usize = 1024;
/// Longest time from the TCP connection to the end of the WebSocket handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are gathered before a write, unless the feed pauses sooner. With 64 KiB one core sends some seven
/// million messages of 60 bytes a second.
const WRITE_BUFFER: usize = 64 << 10;
/// Small, since peers send only subscriptions, pings and closes.
const READ_BUFFER: usize = 4 << 10;
/// How long a simulated exchange waits for the peer's first message, for example a subscription.
const FIRST_MESSAGE_WAIT: Duration = Duration::from_secs(1);

/// What to play, and when.
#[derive(Clone, Debug)]
pub struct Feed {
    pub source: FeedSource,
    /// Time from the connection's opening to the feed's start.
    pub start_after: Duration,
}

#[derive(Clone, Debug)]
pub enum FeedSource {
    Recording {
        frames: Arc<[Recorded]>,
        /// Recorded pauses are divided by this. 0: there are no pauses.
        speed: f64,
    },
    /// An exchange that never ends.
    Simulated {
        /// `ticker` messages a second, of all products together.
        rate: f64,
    },
}

/// How many messages went to peers' sockets; clones share one count.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<AtomicU64>);

impl Sent {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Plays `feed` to each peer that connects, until this future is dropped.
pub async fn serve(listener: TcpListener, feed: Feed, sent: Sent) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((socket, peer)) => {
                    let (feed, sent) = (feed.clone(), sent.clone());
                    connections.spawn(async move {
                        match connection(socket, &feed, &sent).await {
                            Ok(()) => tracing::info!(peer.address = %peer, "a peer has left"),
                            Err(error) => tracing::info!(peer.address = %peer, %error, "a peer is lost"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until the peer closes it.
async fn connection(socket: TcpStream, feed: &Feed, sent: &Sent) -> tungstenite::Result<()> {
    // An error does no harm: small messages may wait for others.
    let _ = socket.set_nodelay(true);
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).write_buffer_size(WRITE_BUFFER);
    let handshake = accept_hdr_async_with_config(socket, FirstSubprotocol, Some(config));
    let socket =
        timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|elapsed| tungstenite::Error::Io(elapsed.into()))??;
    let start = Instant::now() + feed.start_after;
    let (sink, mut stream) = socket.split();
    let heard = Notify::new();
    let reading = async {
        // The library answers pings and closes as they are read.
        while let Some(message) = stream.next().await {
            message?;
            heard.notify_one();
        }
        Ok(())
    };
    let playing = async {
        // An error that ends the writing ends the reading too, and the reading returns it.
        let _ = play(feed, start, &heard, Outgoing { sink, sent }).await;
        std::future::pending().await
    };
    tokio::select! {
        end = reading => end,
        never = playing => never,
    }
}

/// Plays the feed once.
async fn play(feed: &Feed, start: Instant, heard: &Notify, mut out: Outgoing<'_>) -> tungstenite::Result<()> {
    sleep_until(start).await;
    match &feed.source {
        FeedSource::Recording { frames, speed } => recording::play(frames, *speed, start, &mut out).await,
        FeedSource::Simulated { rate } => {
            let _ = timeout(FIRST_MESSAGE_WAIT, heard.notified()).await;
            simulated::play(*rate, &mut out).await
        }
    }
}

/// The way to a peer: messages gather until the buffer is full or the feed pauses.
struct Outgoing<'a, S = SplitSink<WebSocketStream<TcpStream>, Message>> {
    sink: S,
    sent: &'a Sent,
}

impl<S: Sink<Message, Error = tungstenite::Error> + Unpin> Outgoing<'_, S> {
    async fn send(&mut self, message: Message) -> tungstenite::Result<()> {
        self.sink.feed(message).await?;
        self.sent.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends what has gathered, then waits. `None` is a time that never comes.
    async fn pause_until(&mut self, due: Option<Instant>) -> tungstenite::Result<()> {
        if due.is_some_and(|due| due <= Instant::now()) {
            return Ok(());
        }
        self.flush().await?;
        match due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
        Ok(())
    }

    async fn flush(&mut self) -> tungstenite::Result<()> {
        self.sink.flush().await
    }
}

/// Agrees to the first subprotocol offered, whatever it is.
struct FirstSubprotocol;

impl Callback for FirstSubprotocol {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|offered| offered.to_str().ok());
        let first = offered.and_then(|offered| offered.split(',').next());
        if let Some(first) = first.and_then(|first| HeaderValue::from_str(first.trim()).ok()) {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, first);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests;
