//! A client written by hand, which can send what a library would not.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::within;

/// The receive buffer of a narrow client. It holds several of loopback's largest segments, and little of what tests
/// send.
const NARROW_BUFFER: u32 = 256 << 10;

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;
pub const FIN: u8 = 0x80;

pub struct Raw(TcpStream);

/// One frame from the relay.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: the opcode with the FIN bit.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn close_code(&self) -> u16 {
        assert_eq!(self.first, FIN | CLOSE, "{self:?}");
        u16::from_be_bytes(self.payload[..2].try_into().unwrap())
    }
}

impl Raw {
    /// Opens only the TCP connection.
    pub async fn tcp(address: SocketAddr) -> Self {
        Self(within("a TCP connection", TcpStream::connect(address)).await.unwrap())
    }

    /// Connects, and does the handshake.
    pub async fn connect(address: SocketAddr, path: &str) -> Self {
        Self::tcp(address).await.upgraded(address, path).await
    }

    /// Does the handshake on a connection. If the client is not let in, returns what the relay answered, which is empty
    /// if it cut the connection.
    pub async fn try_upgrade(socket: TcpStream, address: SocketAddr, path: &str) -> Result<Self, String> {
        let mut raw = Self(socket);
        if !raw.try_send(request(address, path).as_bytes()).await {
            return Err(String::new());
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match within("an HTTP answer, or the end", raw.0.read_u8()).await {
                Ok(byte) => head.push(byte),
                Err(_) => return Err(String::new()),
            }
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 101 ") { Ok(raw) } else { Err(head) }
    }

    /// Connects with a small receive buffer. While the client does not read, most of a large frame stays with the
    /// relay.
    pub async fn narrow(address: SocketAddr, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW_BUFFER).unwrap();
        Self(within("a TCP connection", socket.connect(address)).await.unwrap()).upgraded(address, path).await
    }

    async fn upgraded(mut self, address: SocketAddr, path: &str) -> Self {
        self.send(request(address, path).as_bytes()).await;
        let head = self.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The value that RFC 6455 section 1.3 gives for the key of its example.
        assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        self
    }

    /// Reads an HTTP answer's head.
    pub async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("an HTTP answer", self.0.read_u8()).await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within("room to send", self.0.write_all(bytes)).await.unwrap();
    }

    /// Sends bytes that the relay may cut short by closing. Returns whether all went out.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("room to send", self.0.write_all(bytes)).await.is_ok()
    }

    /// Ends the sending direction, and goes on reading.
    pub async fn half_close(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Reads up to the next frame's payload, and returns the payload's length.
    pub async fn begun(&mut self) -> usize {
        within("the beginning of a frame", self.read_header()).await.expect("a frame before the end").1
    }

    /// Reads the payload of a frame whose header was read.
    pub async fn payload(&mut self, length: usize) -> Vec<u8> {
        within("the rest of a frame", self.read_payload(length)).await
    }

    /// Returns the next frame. `None`: the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        within("a frame or the end", self.read_frame()).await
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let (first, length) = self.read_header().await?;
        Some(Frame { first, payload: self.read_payload(length).await })
    }

    async fn read_header(&mut self) -> Option<(u8, usize)> {
        let first = self.0.read_u8().await.ok()?;
        // A frame that has begun must be complete.
        let second = self.0.read_u8().await.unwrap();
        assert!(second < 0x80, "a relay's frame must not be masked");
        let length = match second {
            126 => usize::from(self.0.read_u16().await.unwrap()),
            127 => usize::try_from(self.0.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        Some((first, length))
    }

    async fn read_payload(&mut self, length: usize) -> Vec<u8> {
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.unwrap();
        payload
    }

    /// Returns the next frame that is not a ping.
    pub async fn frame_but_pings(&mut self) -> Option<Frame> {
        let frame = async {
            loop {
                match self.read_frame().await {
                    Some(frame) if frame.first == FIN | PING => {}
                    other => return other,
                }
            }
        };
        within("a frame or the end", frame).await
    }

    /// Waits until the relay has ended the connection, whatever it sends before that.
    pub async fn ended(&mut self) {
        let mut buffer = [0; 4096];
        let to_the_end = async { while let Ok(1..) = self.0.read(&mut buffer).await {} };
        within("the connection's end", to_the_end).await;
    }

    /// Checks that the relay closes as RFC 6455 says. Returns the close frame's code.
    pub async fn closed(&mut self) -> u16 {
        let code = self.frame_but_pings().await.expect("a close frame").close_code();
        self.try_send(&frame(FIN | CLOSE, &code.to_be_bytes())).await;
        self.ended().await;
        code
    }
}

impl From<TcpStream> for Raw {
    fn from(socket: TcpStream) -> Self {
        Self(socket)
    }
}

/// Formats a handshake's request, with the key of RFC 6455's example.
pub fn request(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Formats a client's frame, masked. `first` has the opcode and the FIN bit.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = header(first, payload.len() as u64);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Formats the part of a masked frame before its mask. It may claim any length.
pub fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..=125 => header.push(0x80 | length as u8),
        126..=0xFFFF => {
            header.push(0x80 | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header
}
