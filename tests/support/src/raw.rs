//! A client written by hand, for all that a library would not send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::within;

/// A narrow client's receive buffer: several of loopback's largest segments, and little beside what tests send.
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
    /// With its FIN bit.
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
    /// Only the TCP connection.
    pub async fn tcp(address: SocketAddr) -> Self {
        Self(within("a TCP connection", TcpStream::connect(address)).await.unwrap())
    }

    /// A client whose handshake is done.
    pub async fn connect(address: SocketAddr, path: &str) -> Self {
        Self::tcp(address).await.upgraded(address, path).await
    }

    /// A client on a connection of its own; if it is not let in, what the relay said, or nothing if it was cut off.
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

    /// The same, with a small receive buffer: while it does not read, most of a large frame stays with the relay.
    pub async fn narrow(address: SocketAddr, path: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW_BUFFER).unwrap();
        Self(within("a TCP connection", socket.connect(address)).await.unwrap()).upgraded(address, path).await
    }

    async fn upgraded(mut self, address: SocketAddr, path: &str) -> Self {
        self.send(request(address, path).as_bytes()).await;
        let head = self.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // As RFC 6455 section 1.3 has it, for the key of its example.
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

    /// Sends what the relay may cut short by closing.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("room to send", self.0.write_all(bytes)).await.is_ok()
    }

    /// Sends no more, and goes on reading.
    pub async fn half_close(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Reads only what comes before the next frame's payload, and returns how long that is.
    pub async fn begun(&mut self) -> usize {
        within("the beginning of a frame", self.read_header()).await.expect("a frame before the end").1
    }

    /// Reads the payload of a frame that has begun.
    pub async fn payload(&mut self, length: usize) -> Vec<u8> {
        within("the rest of a frame", self.read_payload(length)).await
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        within("a frame or the end", self.read_frame()).await
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let (first, length) = self.read_header().await?;
        Some(Frame { first, payload: self.read_payload(length).await })
    }

    async fn read_header(&mut self) -> Option<(u8, usize)> {
        let first = self.0.read_u8().await.ok()?;
        // What is begun must be whole.
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

    /// The next frame but pings.
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

    /// Waits until the relay has ended the connection, whatever it sends before.
    pub async fn ended(&mut self) {
        let mut buffer = [0; 4096];
        let to_the_end = async { while let Ok(1..) = self.0.read(&mut buffer).await {} };
        within("the connection's end", to_the_end).await;
    }

    /// Closed as RFC 6455 has it: the close frame's code.
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

/// A handshake's request, with the key of RFC 6455's example.
pub fn request(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A client's frame, masked: `first` has the opcode and FIN.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = header(first, payload.len() as u64);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What comes before a masked frame's mask, whatever length it claims.
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
