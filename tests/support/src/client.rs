//! A well-behaved client, on an ordinary WebSocket library.

use std::collections::VecDeque;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, protocol::frame::coding::CloseCode},
};

use super::within;

pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Messages that came while the client waited for something else.
    early: VecDeque<Message>,
    settled: u32,
    pings: usize,
}

impl Client {
    pub async fn connect(url: &str) -> Self {
        match Self::try_connect(url).await {
            Ok(client) => client,
            Err(error) => panic!("{url}: {error}"),
        }
    }

    pub async fn try_connect(url: &str) -> Result<Self, tungstenite::Error> {
        let address = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let connecting = async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            client_async(url, socket).await
        };
        let (socket, _) = within(url, connecting).await?;
        Ok(Self { socket, early: VecDeque::new(), settled: 0, pings: 0 })
    }

    /// Asks and waits for an answer. By then the relay has handled all that came before the question.
    pub async fn settle(&mut self) {
        self.settled += 1;
        let payload = format!("settled {}", self.settled);
        self.send(Message::Ping(payload.clone().into())).await;
        let answer = async {
            loop {
                match self.read().await {
                    Message::Pong(answer) if answer == payload.as_bytes() => return,
                    other => self.keep(other),
                }
            }
        };
        within("an answer to a ping", answer).await;
    }

    pub async fn send(&mut self, message: Message) {
        within("room to send", self.socket.send(message)).await.unwrap();
    }

    /// Sends a message that the relay may cut short by closing. Returns whether all of it went out.
    pub async fn try_send(&mut self, message: Message) -> bool {
        within("room to send", self.socket.send(message)).await.is_ok()
    }

    /// The next text or binary message.
    pub async fn message(&mut self) -> Message {
        let message = async {
            loop {
                if let Some(message) = self.early.pop_front() {
                    return message;
                }
                let message = self.read().await;
                self.keep(message);
            }
        };
        within("a message", message).await
    }

    /// The next message, which must be text.
    pub async fn text(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.to_string(),
            other => panic!("not text: {other:?}"),
        }
    }

    /// Checks that nothing more was published than was read.
    pub async fn has_no_more(&mut self) {
        self.settle().await;
        assert_eq!(self.early.front(), None);
    }

    /// Waits for this many pings and answers each. Keeps the messages that come meanwhile.
    pub async fn pinged(&mut self, times: usize) {
        let wanted = self.pings + times;
        let pings = async {
            while self.pings < wanted {
                let message = self.read().await;
                self.keep(message);
            }
        };
        within(format!("{times} pings"), pings).await;
    }

    /// Reads to the connection's end. Returns the messages, and the code that the connection was closed with.
    pub async fn rest(mut self) -> (Vec<Message>, Option<CloseCode>) {
        let mut messages = Vec::from(std::mem::take(&mut self.early));
        let mut code = None;
        let end = async {
            while let Some(received) = self.socket.next().await {
                match received {
                    Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code),
                    Ok(message @ (Message::Text(_) | Message::Binary(_))) => messages.push(message),
                    Ok(_) => {}
                    Err(error) => panic!("broken off after {} messages: {error}", messages.len()),
                }
            }
        };
        within("the connection's end", end).await;
        (messages, code)
    }

    /// Has no deadline of its own, because pings keep coming.
    async fn read(&mut self) -> Message {
        match self.socket.next().await {
            Some(message) => message.unwrap(),
            None => panic!("the connection has ended"),
        }
    }

    /// Keeps a message that came while the client waited for something else.
    fn keep(&mut self, message: Message) {
        match message {
            Message::Text(_) | Message::Binary(_) => self.early.push_back(message),
            Message::Ping(_) => self.pings += 1,
            Message::Close(frame) => panic!("the relay has closed the connection: {frame:?}"),
            _ => {}
        }
    }
}
