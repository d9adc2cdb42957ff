//! An HTTP/1.1 client written by hand. It sends each byte when the test says so, and tells the ways apart in which an
//! answer may end.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
};

use super::within;

/// The receive buffer of a narrow client.
const NARROW_BUFFER: u32 = 64 << 10;

pub struct Http(BufReader<TcpStream>);

/// The status line and the headers of an answer, with names in lower case.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    pub body: String,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the status and the code of an error that the host answered. Checks that it has the shape of all such
    /// errors.
    pub fn envelope(&self) -> (u16, String) {
        assert_eq!(self.head.header("content-type"), Some("application/json"), "{self:?}");
        let json = self.json();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!((keys(&json), keys(&json["error"])), (vec!["error".into()], vec!["code".into(), "message".into()]));
        assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        (self.head.status, json["error"]["code"].as_str().unwrap().to_owned())
    }
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = within("a TCP connection", TcpStream::connect(address)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self(BufReader::new(socket))
    }

    /// Connects to a relay that may be killed meanwhile. Then there is no connection.
    pub async fn try_connect(address: SocketAddr) -> Option<Self> {
        let socket = within("a TCP connection", TcpStream::connect(address)).await.ok()?;
        socket.set_nodelay(true).ok()?;
        Some(Self(BufReader::new(socket)))
    }

    /// Connects with a small receive buffer. While the client does not read, most of a large answer stays with the
    /// relay.
    pub async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW_BUFFER).unwrap();
        Self(BufReader::new(within("a TCP connection", socket.connect(address)).await.unwrap()))
    }

    /// Leaves without a goodbye: the relay gets a reset.
    pub fn reset(self) {
        self.0.get_ref().set_zero_linger().unwrap();
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("room to send", self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends bytes that the relay may cut short by closing. Returns whether all went out.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within("room to send", self.0.write_all(bytes.as_ref())).await.is_ok()
    }

    /// Sends a request without a body, and does not read the answer.
    pub async fn request(&mut self, method: &str, path: &str) {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: api.test\r\n\r\n")).await;
    }

    /// Sends the head of a request whose body follows in chunks.
    pub async fn begin(&mut self, path: &str) {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    }

    pub async fn send_chunk(&mut self, bytes: impl AsRef<[u8]>) {
        self.send(chunk(bytes)).await;
    }

    /// Sends the last chunk.
    pub async fn end(&mut self) {
        self.send("0\r\n\r\n").await;
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path).await;
        self.answer().await
    }

    /// Like `get`, from a relay that may be killed meanwhile. `None`: it was.
    pub async fn try_get(&mut self, path: &str) -> Option<Answer> {
        if !self.try_send(format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n")).await {
            return None;
        }
        let head = within("an answer, or the end", self.read_head()).await?;
        let (body, whole) = within("a whole answer, or the end", self.read_body(&head)).await;
        whole.then_some(Answer { head, body })
    }

    pub async fn post(&mut self, path: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(format!("POST {path} HTTP/1.1\r\nHost: api.test\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        self.answer().await
    }

    /// Reads the head of an answer.
    pub async fn head(&mut self) -> Head {
        within("an answer", self.read_head()).await.expect("an answer before the end")
    }

    /// Reads the next line of an event stream.
    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        within("a line", self.0.read_line(&mut line)).await.unwrap();
        line.strip_suffix('\n').expect("a line before the end").to_owned()
    }

    /// Reads the next chunk of an answer. The last one is empty.
    pub async fn chunk(&mut self) -> String {
        within("a chunk", self.read_chunk()).await.expect("a chunk before the end")
    }

    /// Reads an answer, which must be complete.
    pub async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let (body, whole) = within("a whole answer", self.read_body(&head)).await;
        assert!(whole, "cut off: {head:?} {body:?}");
        Answer { head, body }
    }

    /// Reads an answer that is never completed. Returns what came before the connection ended.
    pub async fn cut_off(&mut self) -> Option<Answer> {
        let read = async {
            let head = self.read_head().await?;
            let (body, whole) = self.read_body(&head).await;
            assert!(!whole, "not cut off: {head:?} {body:?}");
            Some(Answer { head, body })
        };
        within("the end of the connection", read).await
    }

    /// Reads until the connection ends.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // The connection may end or be reset.
        let _ = within("the end of the connection", self.0.read_to_end(&mut rest)).await;
        String::from_utf8(rest).unwrap()
    }

    async fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.ok()?;
        line.strip_suffix("\r\n").map(str::to_owned)
    }

    async fn read_head(&mut self) -> Option<Head> {
        let line = self.read_line().await?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut head = Head { status: status.unwrap_or_else(|| panic!("not an answer: {line:?}")), headers: vec![] };
        loop {
            let line = self.read_line().await?;
            let Some((name, value)) = line.split_once(':') else { return Some(head) };
            head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    async fn read_chunk(&mut self) -> Option<String> {
        let length = usize::from_str_radix(&self.read_line().await?, 16).unwrap();
        let mut data = vec![0; length];
        self.0.read_exact(&mut data).await.ok()?;
        assert_eq!(self.read_line().await?, "");
        Some(String::from_utf8(data).unwrap())
    }

    /// Reads the body. Returns it, and whether it is complete.
    async fn read_body(&mut self, head: &Head) -> (String, bool) {
        let mut body = String::new();
        if head.is_chunked() {
            while let Some(chunk) = self.read_chunk().await {
                if chunk.is_empty() {
                    return (body, true);
                }
                body += &chunk;
            }
            return (body, false);
        }
        let length = head.header("content-length").map(|length| length.parse::<usize>().unwrap());
        while length.is_none_or(|length| body.len() < length) {
            let mut part = [0; 4096];
            let room = length.map_or(part.len(), |length| part.len().min(length - body.len()));
            match self.0.read(&mut part[..room]).await {
                Ok(read @ 1..) => body += std::str::from_utf8(&part[..read]).unwrap(),
                // Without a length, the body ends with the connection.
                ended => return (body, length.is_none() && ended.is_ok()),
            }
        }
        (body, true)
    }
}

impl From<TcpStream> for Http {
    fn from(socket: TcpStream) -> Self {
        Self(BufReader::new(socket))
    }
}

/// Formats one chunk of a body.
pub fn chunk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}
