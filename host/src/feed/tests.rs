//! The server on a real socket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::feed::{Feed, FeedSource, Sent, recording::Recorded, serve};

const DEADLINE: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A feed that ends with the test.
struct Running {
    url: String,
    sent: Sent,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(source: FeedSource, start_after: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        let sent = Sent::default();
        let feed = serve(listener, Feed { source, start_after }, sent.clone());
        Self { url, sent, task: tokio::spawn(async { match feed.await {} }) }
    }

    async fn connect(&self) -> Socket {
        connect_async(&self.url).await.unwrap().0
    }
}

fn recording(count: usize, bytes: usize, speed: f64) -> FeedSource {
    let at = Duration::ZERO;
    let message = |nth| Message::text(format!("{nth:>bytes$}"));
    FeedSource::Recording { frames: (0..count).map(|nth| Recorded { at, message: message(nth) }).collect(), speed }
}

async fn next(socket: &mut Socket) -> Message {
    timeout(DEADLINE, socket.next()).await.expect("nothing came").expect("closed").unwrap()
}

#[tokio::test]
async fn every_connection_gets_the_whole_recording_and_stays_open() {
    let feed = Running::start(recording(1_000, 100, 0.0), Duration::ZERO).await;
    for _ in 0..2 {
        let mut socket = feed.connect().await;
        for nth in 0..1_000 {
            assert_eq!(next(&mut socket).await, Message::text(format!("{nth:>100}")));
        }
        socket.send(Message::Ping("still there?".into())).await.unwrap();
        assert_eq!(next(&mut socket).await, Message::Pong("still there?".into()));
        socket.close(None).await.unwrap();
        assert!(next(&mut socket).await.is_close());
        assert!(timeout(DEADLINE, socket.next()).await.unwrap().is_none());
    }
    assert_eq!(feed.sent.get(), 2_000);
}

#[tokio::test]
async fn pings_are_answered_and_messages_read_while_it_plays() {
    let feed = Running::start(FeedSource::Simulated { rate: 1_000.0 }, Duration::ZERO).await;
    let mut socket = feed.connect().await;
    let connected = Instant::now();
    socket.send(Message::text("subscribe")).await.unwrap();
    assert!(next(&mut socket).await.is_text());
    assert!(connected.elapsed() < Duration::from_millis(900), "the subscription was not noticed");
    socket.send(Message::Ping("now".into())).await.unwrap();
    while next(&mut socket).await != Message::Pong("now".into()) {}
    socket.close(None).await.unwrap();
    while !next(&mut socket).await.is_close() {}
}

#[tokio::test]
async fn a_silent_peer_gets_the_simulation_too() {
    let feed = Running::start(FeedSource::Simulated { rate: 1_000.0 }, Duration::ZERO).await;
    let mut socket = feed.connect().await;
    let connected = Instant::now();
    assert!(next(&mut socket).await.is_text());
    assert!(connected.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn it_starts_as_late_as_asked() {
    let feed = Running::start(recording(1, 1, 0.0), Duration::from_millis(300)).await;
    let before = Instant::now();
    let mut socket = feed.connect().await;
    next(&mut socket).await;
    assert!(before.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn the_first_subprotocol_is_agreed_to() {
    let feed = Running::start(recording(1, 1, 0.0), Duration::ZERO).await;
    let mut request = feed.url.as_str().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "one, two".parse().unwrap());
    let (_, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "one");
}

#[tokio::test]
async fn dropping_it_closes_every_connection() {
    let feed = Running::start(recording(1, 1, 0.0), Duration::ZERO).await;
    let mut socket = feed.connect().await;
    next(&mut socket).await;
    drop(feed);
    assert!(timeout(DEADLINE, socket.next()).await.unwrap().unwrap().is_err());
}
