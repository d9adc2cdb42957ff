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
    /// Came while something else was waited for.
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

    /// Asks and waits for an answer: the relay has done all that it does with what came before.
    pub async fn settle(&mut self) {
        self.settled += 1;
        let payload = format!("settled {}", self.settled);
        self.send(Message::Ping(payload.clone().into())).await;
        loop {
            match self.next().await {
                Message::Pong(answer) if answer == payload.as_bytes() => return,
                message @ (Message::Text(_) | Message::Binary(_)) => self.early.push_back(message),
                Message::Close(frame) => panic!("closed instead of settled: {frame:?}"),
                _ => {}
            }
        }
    }

    pub async fn send(&mut self, message: Message) {
        within("room to send", self.socket.send(message)).await.unwrap();
    }

    /// The next text or binary message.
    pub async fn message(&mut self) -> Message {
        if let Some(message) = self.early.pop_front() {
            return message;
        }
        loop {
            match self.next().await {
                message @ (Message::Text(_) | Message::Binary(_)) => return message,
                Message::Close(frame) => panic!("closed instead of a message: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next message, which must be text.
    pub async fn text(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.to_string(),
            other => panic!("not text: {other:?}"),
        }
    }

    /// Nothing more has been published than was read.
    pub async fn has_no_more(&mut self) {
        self.settle().await;
        assert_eq!(self.early.front(), None);
    }

    /// Waits for so many pings, answering each. Messages that come meanwhile are kept.
    pub async fn pinged(&mut self, times: usize) {
        let wanted = self.pings + times;
        while self.pings < wanted {
            match self.next().await {
                Message::Close(frame) => panic!("closed instead of pinged: {frame:?}"),
                message @ (Message::Text(_) | Message::Binary(_)) => self.early.push_back(message),
                _ => {}
            }
        }
    }

    /// Reads to the connection's end: the messages, and the code it was closed with.
    pub async fn rest(mut self) -> (Vec<Message>, Option<CloseCode>) {
        let mut messages = Vec::from(std::mem::take(&mut self.early));
        let mut code = None;
        while let Some(received) = within("a message or the end", self.socket.next()).await {
            match received {
                Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code),
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => messages.push(message),
                Ok(_) => {}
                Err(error) => panic!("broken off after {} messages: {error}", messages.len()),
            }
        }
        (messages, code)
    }

    async fn next(&mut self) -> Message {
        let message = match within("a message", self.socket.next()).await {
            Some(message) => message.unwrap(),
            None => panic!("the connection has ended"),
        };
        self.pings += usize::from(message.is_ping());
        message
    }
}
