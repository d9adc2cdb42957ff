//! A partner whose faults the test decides for each connection.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::{
            derive_accept_key,
            server::{Callback, ErrorResponse, Request, Response},
        },
        http::{HeaderMap, HeaderValue},
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

use super::{loopback, within};

/// A listener that hands every connection to the test.
pub struct Partner {
    pub address: SocketAddr,
    arrivals: mpsc::UnboundedReceiver<TcpStream>,
    connections: Arc<AtomicUsize>,
    listening: JoinSet<()>,
}

impl Partner {
    pub async fn start() -> Self {
        Self::start_at(loopback(), 0).await
    }

    /// Starts at the address that `localhost` leads to.
    pub async fn local() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, 0).await
    }

    pub async fn start_at(address: Ipv4Addr, port: u16) -> Self {
        let mut listening = JoinSet::new();
        let (sender, arrivals) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        listening.spawn(listen(listener, sender, Arc::clone(&connections)));
        Self { address, arrivals, connections, listening }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/feed?key=1", self.address)
    }

    /// The URL with the name `localhost` in it. The partner must have been started with [`Partner::local`].
    pub fn named_url(&self) -> String {
        format!("ws://localhost:{}/feed?key=1", self.address.port())
    }

    pub fn tls_url(&self) -> String {
        format!("wss://{}/feed?key=1", self.address)
    }

    /// How many connections were ever opened.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Refuses connections from now on.
    pub async fn stop(&mut self) {
        self.listening.shutdown().await;
    }

    /// Listens again at the same address.
    pub async fn resume(&mut self) {
        let (sender, arrivals) = mpsc::unbounded_channel();
        self.arrivals = arrivals;
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listening.spawn(listen(listener, sender, Arc::clone(&self.connections)));
    }

    /// Returns the next connection. Nothing has been read or sent on it.
    pub async fn arrival(&mut self) -> Arrival {
        Arrival(within("a connection to the partner", self.arrivals.recv()).await.unwrap())
    }

    /// Returns the next connection, after its WebSocket handshake.
    pub async fn accept(&mut self) -> Peer {
        self.arrival().await.upgrade(None).await
    }
}

async fn listen(listener: TcpListener, arrivals: mpsc::UnboundedSender<TcpStream>, count: Arc<AtomicUsize>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        if arrivals.send(socket).is_err() {
            return;
        }
    }
}

/// A connection from the relay. Dropping it closes it at once.
pub struct Arrival(TcpStream);

impl Arrival {
    /// Does the handshake. `subprotocol` is the one agreed to.
    pub async fn upgrade(self, subprotocol: Option<&'static str>) -> Peer {
        upgrade(self.0, subprotocol).await
    }

    /// Does the TLS handshake, then the WebSocket handshake.
    pub async fn upgrade_tls(self, acceptor: &TlsAcceptor) -> Peer<TlsStream<TcpStream>> {
        let socket = within("a TLS handshake", acceptor.accept(self.0)).await.unwrap();
        upgrade(socket, None).await
    }

    /// Does a TLS handshake that fails on one side or the other.
    pub async fn refused_tls(self, acceptor: &TlsAcceptor) {
        assert!(self.try_tls(acceptor).await.is_none(), "the relay accepts it");
    }

    /// Does the TLS handshake and reads the request. `None`: one side does not want the other's certificate.
    pub async fn try_tls(self, acceptor: &TlsAcceptor) -> Option<RawPeer<TlsStream<TcpStream>>> {
        let socket = within("an end of the TLS handshake", acceptor.accept(self.0)).await.ok()?;
        Some(RawPeer::read(socket).await)
    }

    /// Sends these bytes before it has read anything.
    pub async fn write(mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.shutdown().await.unwrap();
    }

    /// Reads the request and answers it with these bytes instead.
    pub async fn answer(self, bytes: &[u8]) {
        self.request().await.write(bytes).await;
    }

    /// Reads the request.
    pub async fn request(self) -> RawPeer {
        RawPeer::read(self.0).await
    }

    /// Does the TLS handshake, and reads the request.
    pub async fn request_tls(self, acceptor: &TlsAcceptor) -> RawPeer<TlsStream<TcpStream>> {
        RawPeer::read(within("a TLS handshake", acceptor.accept(self.0)).await.unwrap()).await
    }

    /// Ends with a reset.
    pub fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }
}

/// The partner's end of a connection, byte by byte. Dropped, it ends without a close frame.
pub struct RawPeer<S = TcpStream> {
    /// The request's lines.
    pub request: Vec<String>,
    socket: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawPeer<S> {
    async fn read(mut socket: S) -> Self {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(within("a request", socket.read_u8()).await.unwrap());
        }
        let request = String::from_utf8(request).unwrap();
        Self { request: request.lines().filter(|line| !line.is_empty()).map(String::from).collect(), socket }
    }

    /// What the request asks for.
    pub fn target(&self) -> &str {
        self.request[0].split(' ').nth(1).unwrap()
    }

    /// The value of a header of the request.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.request.iter().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// What `Sec-WebSocket-Accept` must say.
    pub fn accept_key(&self) -> String {
        derive_accept_key(self.header("sec-websocket-key").unwrap().as_bytes())
    }

    /// Answers with 101 and these lines, in which `ACCEPT` stands for the key, and then with `tail`.
    pub async fn switch(&mut self, lines: &[&str], tail: &[u8]) {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n\r\n", lines.join("\r\n"));
        let mut bytes = head.replace("ACCEPT", &self.accept_key()).into_bytes();
        bytes.extend_from_slice(tail);
        self.write(&bytes).await;
    }

    /// Agrees to the handshake, with more lines in the answer.
    pub async fn agree(&mut self, more: &[&str]) {
        self.switch(&[&HANDSHAKE, more].concat(), b"").await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        within("room to send", self.socket.write_all(bytes)).await.unwrap();
        within("room to send", self.socket.flush()).await.unwrap();
    }

    /// Sends a frame whose first byte is this, with less than 126 bytes of payload.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, u8::try_from(payload.len()).unwrap()];
        assert!(payload.len() < 126);
        frame.extend_from_slice(payload);
        self.write(&frame).await;
    }

    /// Sends this again and again, until the relay reads no more or the test ends.
    pub async fn flood(&mut self, bytes: &[u8]) {
        while self.socket.write_all(bytes).await.is_ok() {}
    }

    /// Returns the next frame of the relay: its first byte, and its payload. `None`: the connection has ended.
    pub async fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        within("a frame of the relay", self.read_frame()).await
    }

    /// Returns the next text of the relay. Pings are passed over.
    pub async fn next_text(&mut self) -> String {
        loop {
            match self.next_frame().await {
                Some((0x81, text)) => return String::from_utf8(text).unwrap(),
                Some((PING, _)) => {}
                other => panic!("not text: {other:?}"),
            }
        }
    }

    async fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.socket.read_exact(&mut head).await.ok()?;
        let length = match head[1] & 0x7F {
            126 => self.socket.read_u16().await.ok()?.into(),
            127 => self.socket.read_u64().await.ok()?,
            short => short.into(),
        };
        let mut mask = [0; 4];
        self.socket.read_exact(&mut mask).await.ok()?;
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut payload).await.ok()?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Some((head[0], payload))
    }

    /// Reads to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = within("an end of the connection", self.socket.read_to_end(&mut rest)).await;
        rest
    }
}

impl RawPeer {
    /// The socket, for a thread of its own.
    pub fn into_std(self) -> std::net::TcpStream {
        let socket = self.socket.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        socket
    }
}

/// The first bytes of control frames that are whole (RFC 6455, section 5.2).
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;

/// The lines of an answer that agrees to a handshake.
pub const HANDSHAKE: [&str; 3] = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: ACCEPT"];

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(socket: S, subprotocol: Option<&'static str>) -> Peer<S> {
    let mut peer = Peer { path: String::new(), headers: HeaderMap::new(), socket: None };
    let handshake = Handshake { subprotocol, path: &mut peer.path, headers: &mut peer.headers };
    peer.socket = Some(within("a handshake", accept_hdr_async(socket, handshake)).await.unwrap());
    peer
}

/// Agrees to the handshake, and keeps the relay's request.
struct Handshake<'a> {
    subprotocol: Option<&'static str>,
    path: &'a mut String,
    headers: &'a mut HeaderMap,
}

impl Callback for Handshake<'_> {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        *self.path = request.uri().to_string();
        *self.headers = request.headers().clone();
        if let Some(subprotocol) = self.subprotocol {
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(subprotocol));
        }
        Ok(response)
    }
}

/// The partner's end of a connection. It reads only while the test waits for something from it, and answers pings and
/// closes only then. Dropped, it ends without a close frame.
pub struct Peer<S = TcpStream> {
    /// The path that the relay asked for.
    pub path: String,
    pub headers: HeaderMap,
    socket: Option<WebSocketStream<S>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub async fn send(&mut self, message: Message) {
        within("room to send", self.socket().send(message)).await.unwrap();
    }

    pub async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// Sends a message that the relay may cut short by closing. Returns whether all of it went out.
    pub async fn try_send(&mut self, message: Message) -> bool {
        within("room to send", self.socket().send(message)).await.is_ok()
    }

    /// Sends many messages in as few writes as possible.
    pub async fn burst(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            within("room to send", self.socket().feed(message)).await.unwrap();
        }
        within("room to send", self.socket().flush()).await.unwrap();
    }

    /// Sends one fragment of a message: the first has its type, the others are continuations.
    pub async fn fragment(&mut self, kind: Data, bytes: impl Into<Vec<u8>>, last: bool) -> bool {
        self.try_send(Message::Frame(Frame::message(bytes.into(), OpCode::Data(kind), last))).await
    }

    /// Returns what the relay sends next, pings and pongs included. `None`: the connection has ended.
    pub async fn next(&mut self) -> Option<Message> {
        within("something from the relay", self.read()).await
    }

    /// Returns the next text that the relay sends.
    pub async fn next_text(&mut self) -> String {
        let text = async {
            loop {
                match self.read().await {
                    Some(Message::Text(text)) => return text.to_string(),
                    Some(Message::Ping(_) | Message::Pong(_)) => {}
                    other => panic!("not text: {other:?}"),
                }
            }
        };
        within("a text from the relay", text).await
    }

    /// Asks and waits for the answer. This checks that the relay has sent no message before it.
    pub async fn was_sent_nothing(&mut self) {
        self.send(Message::Ping("anything?".into())).await;
        let answer = async {
            loop {
                match self.read().await {
                    Some(Message::Pong(answer)) if answer == "anything?".as_bytes() => return,
                    Some(Message::Ping(_) | Message::Pong(_)) => {}
                    other => panic!("the relay has sent {other:?}"),
                }
            }
        };
        within("an answer from the relay", answer).await;
    }

    /// Sends a close frame with code 1000, and waits until the relay ends the connection.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.send(Message::Close(Some(frame))).await;
        self.ended().await;
    }

    /// Reads until the relay has ended the connection. Returns its close code, if it gave one.
    pub async fn ended(&mut self) -> Option<u16> {
        let mut code = None;
        let end = async {
            while let Some(message) = self.read().await {
                if let Message::Close(Some(frame)) = message {
                    code = Some(frame.code.into());
                }
            }
        };
        within("an end of the connection by the relay", end).await;
        code
    }

    /// Has no deadline of its own, because pings keep coming.
    async fn read(&mut self) -> Option<Message> {
        self.socket().next().await?.ok()
    }

    fn socket(&mut self) -> &mut WebSocketStream<S> {
        self.socket.as_mut().expect("the handshake is done")
    }
}

impl Peer {
    /// Ends with a reset, at once.
    pub fn reset(mut self) {
        self.socket().get_ref().set_zero_linger().unwrap();
    }
}
