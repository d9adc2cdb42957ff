//! A partner's WebSocket: reads its frames, joins them into messages, writes the relay's.
//!
//! The socket remembers when bytes last came. So a large message on a slow line is a sign of life before it is whole.
//! All that it keeps is the tenant's: the buffer, fragments, and what inflating takes. A message that is handed out is
//! no longer its own.

use std::{io, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tokio_util::either::Either;
use wire::{
    Frame, Kind,
    deflate::{Inflater, ServerAgreed},
    frame::{self, Violation},
    message::{Assembly, Received, Taken},
};

use crate::{
    account::{Account, Charge, Part},
    upstream::connect::PartnerStream,
};

/// The buffer's usual size. A longer frame has one of its own.
const BUFFER: usize = 64 << 10;
/// What a long frame gets at once of its own buffer, which then grows as it comes.
const AT_ONCE: usize = 1 << 20;
/// The least room that is worth a read.
const LEAST_ROOM: usize = 16 << 10;
/// Bytes of a long frame that are read at a time.
const FRAGMENT: u64 = 256 << 10;
/// The most bytes that are read and dropped at the end.
const FAREWELL_BYTES: u64 = 1 << 20;

/// Why a socket can be read no more.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the partner ended the connection without a close frame")]
    Ended,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the partner broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the tenant's memory is full")]
    Memory,
}

impl SocketError {
    /// The value of the metric's label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Ended => "reset",
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset",
            // A TLS partner that goes without a word.
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => "reset",
            Self::Io(_) => "io",
            Self::Violation(Violation::TooLarge) => "too_large",
            Self::Violation(_) => "protocol",
            Self::Memory => "memory",
        }
    }
}

pub struct PartnerSocket {
    stream: PartnerStream,
    /// What was read and not taken yet.
    buffer: BytesMut,
    /// Whether the buffer is one long frame's own.
    is_long: bool,
    /// Bytes of the frame at the buffer's start, as far as known.
    needed: usize,
    assembly: Assembly,
    /// `None`: compression was not agreed on.
    inflater: Option<Inflater>,
    max_message: usize,
    last_read: Instant,
    bytes_read: u64,
    charge: Charge,
}

impl PartnerSocket {
    /// `rest`: what the partner has sent behind its answer to the handshake. `None`: the tenant's memory is full.
    pub fn new(
        stream: PartnerStream,
        rest: Bytes,
        agreed: Option<ServerAgreed>,
        max_message: usize,
        account: &Arc<Account>,
    ) -> Option<Self> {
        let inflater =
            agreed.map(|agreed| if agreed.keeps_context { Inflater::with_context() } else { Inflater::default() });
        let mut socket = Self {
            stream,
            buffer: BytesMut::from(rest),
            is_long: false,
            needed: 0,
            assembly: Assembly::default(),
            inflater,
            max_message,
            last_read: Instant::now(),
            bytes_read: 0,
            charge: Charge::new(account, Part::Sockets),
        };
        socket.settle(0).then_some(socket)
    }

    /// When bytes last came.
    pub fn last_read(&self) -> Instant {
        self.last_read
    }

    /// How many bytes have come.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Notes that what has come until now is yet to be read.
    pub fn was_not_read(&mut self) {
        self.last_read = Instant::now();
    }

    /// Returns what comes next. A long frame counts as fragments, so that reading it takes no long time at once.
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Received, SocketError> {
        let before = self.bytes_read;
        loop {
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            if self.bytes_read - before >= FRAGMENT {
                return Ok(Received::Fragment);
            }
            self.fill().await?;
        }
    }

    /// Returns when there may be something to read. Before, [`PartnerSocket::next_now`] has returned nothing.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.stream {
            Either::Left(tcp) => tcp.readable().await,
            Either::Right(tls) => tls.get_ref().0.readable().await,
        }
    }

    /// Returns what comes next if it is there already.
    pub fn next_now(&mut self) -> Option<Result<Received, SocketError>> {
        // Most come from the buffer.
        if let Some(taken) = self.take().transpose() {
            return Some(taken);
        }
        // Turns have limits of their own. With the runtime's, there might seem to be nothing.
        tokio::task::unconstrained(self.next()).now_or_never()
    }

    /// Takes a frame out of the buffer.
    fn take(&mut self) -> Result<Option<Received>, SocketError> {
        match self.assembly.take(&mut self.buffer, self.is_long, self.max_message, self.inflater.as_mut())? {
            Taken::Received(received) => {
                self.needed = 0;
                if self.is_long {
                    (self.buffer, self.is_long) = (BytesMut::new(), false);
                }
                // What goes with the message is charged where it goes.
                if self.held() != self.charge.bytes() && !self.settle(0) {
                    return Err(SocketError::Memory);
                }
                Ok(Some(received))
            }
            Taken::Unfinished(needed) => {
                self.needed = needed;
                Ok(None)
            }
        }
    }

    /// Reads once.
    async fn fill(&mut self) -> Result<(), SocketError> {
        let room = self.make_room()?;
        let read = self.stream.read_buf(&mut (&mut self.buffer).limit(room)).await?;
        if read == 0 {
            return Err(SocketError::Ended);
        }
        self.last_read = Instant::now();
        self.bytes_read += read as u64;
        Ok(())
    }

    /// Makes room in the buffer, and returns how much of it is to be used. A long frame's buffer grows as it comes, and
    /// has nothing behind the frame, so that the message goes with all of it and no more.
    fn make_room(&mut self) -> Result<usize, SocketError> {
        let length = self.buffer.len();
        if self.needed > BUFFER {
            if !self.is_long {
                // It doubles until it has all of the frame, and no more.
                let halves = (self.needed / AT_ONCE).checked_ilog2().unwrap_or(0);
                self.renew(length.max(self.needed.div_ceil(1 << halves)))?;
                self.is_long = true;
            } else if self.buffer.capacity() == length {
                let more = length.min(self.needed.saturating_sub(length)).max(1);
                if !self.settle(more) {
                    return Err(SocketError::Memory);
                }
                // Large blocks are moved by the kernel, without a copy.
                self.buffer.reserve(more);
            }
        } else if length == 0 {
            // Begins at the front again.
            self.buffer.reserve(BUFFER);
        } else if self.buffer.capacity() - length < LEAST_ROOM {
            self.renew(BUFFER)?;
        }
        if !self.settle(0) {
            return Err(SocketError::Memory);
        }
        let room = self.buffer.capacity() - length;
        let most = usize::try_from(FRAGMENT).unwrap_or(usize::MAX);
        Ok(if self.is_long { room.min(self.needed.saturating_sub(length)).min(most) } else { room })
    }

    /// Puts what is in the buffer into another of this size.
    fn renew(&mut self, size: usize) -> Result<(), SocketError> {
        if !self.settle(size) {
            return Err(SocketError::Memory);
        }
        let mut renewed = BytesMut::with_capacity(size);
        renewed.extend_from_slice(&self.buffer);
        self.buffer = renewed;
        Ok(())
    }

    /// Charges what it holds, and what it is about to take. `false`: it does not fit.
    fn settle(&mut self, more: usize) -> bool {
        self.charge.set(self.held() + more)
    }

    /// Bytes of memory that it holds.
    fn held(&self) -> usize {
        // A buffer that was read from in part still has its whole size.
        let buffer = if self.is_long { self.buffer.capacity() } else { BUFFER.max(self.buffer.capacity()) };
        buffer + self.assembly.capacity() + self.inflater.as_ref().map_or(0, Inflater::memory)
    }

    /// Sends a message.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let opcode = match frame.kind {
            // Text is checked where it enters. What is not UTF-8 all the same goes out as binary.
            Kind::Text if std::str::from_utf8(&frame.bytes).is_ok() => frame::TEXT,
            Kind::Text | Kind::Binary => frame::BINARY,
        };
        self.write(opcode, &frame.bytes).await
    }

    pub async fn ping(&mut self) -> io::Result<()> {
        self.write(frame::PING, &[]).await
    }

    /// Answers pings that brought these.
    pub async fn pong(&mut self, payloads: &[Bytes]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for payload in payloads {
            frame::encode_masked(frame::PONG, payload, rand::random(), &mut bytes);
        }
        self.write_all(&bytes).await
    }

    async fn write(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(frame::header_len(payload.len()) + 4 + payload.len());
        frame::encode_masked(opcode, payload, rand::random(), &mut bytes);
        self.write_all(&bytes).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends a close frame and ends the connection (RFC 6455 section 7.1.1). Without a code the frame is empty.
    pub async fn close(&mut self, code: Option<u16>) -> io::Result<()> {
        let payload = code.map_or_else(Vec::new, |code| frame::close_payload(code, ""));
        self.write(frame::CLOSE, &payload).await?;
        // A socket that is closed over unread bytes is reset, and the reset may overtake the close frame. So what the
        // partner still sends is read and dropped.
        self.stream.shutdown().await?;
        tokio::io::copy(&mut (&mut self.stream).take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair(account: &Arc<Account>, agreed: Option<ServerAgreed>) -> (PartnerSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let partner = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let socket = PartnerSocket::new(Either::Left(stream), Bytes::new(), agreed, 1 << 20, account).unwrap();
        (socket, partner)
    }

    fn frame_of(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame::encode(first, payload, &mut frame);
        frame
    }

    #[tokio::test]
    async fn what_it_keeps_is_charged_and_what_it_hands_out_is_not() {
        let account = Account::of_test();
        let (mut socket, mut partner) = pair(&account, None).await;
        let long = frame_of(frame::BINARY, &vec![7; 900_000]);
        let (most, rest) = long.split_at(800_000);
        partner.write_all(most).await.unwrap();
        while socket.buffer.len() < most.len() {
            let next = tokio::time::timeout(std::time::Duration::from_millis(50), socket.next()).await;
            assert!(matches!(next, Err(_) | Ok(Ok(Received::Fragment))));
        }
        // It has been read in full, and its buffer is the frame's.
        assert_eq!(account.bytes(Part::Sockets), long.len());
        partner.write_all(rest).await.unwrap();
        partner.write_all(&frame_of(frame::TEXT, b"short")).await.unwrap();
        let Ok(Received::Message(message)) = socket.next().await else { panic!() };
        assert_eq!((message.bytes.len(), account.bytes(Part::Sockets)), (900_000, BUFFER));
        let Ok(Received::Message(message)) = socket.next().await else { panic!() };
        assert_eq!(&message.bytes[..], b"short");
        assert_eq!(account.bytes(Part::Sockets), BUFFER);
        assert!(message.bytes.is_unique(), "a message that is kept keeps no buffer");
        drop(socket);
        assert_eq!(account.bytes(Part::Sockets), 0);
    }

    #[tokio::test]
    async fn inflating_is_charged() {
        let account = Account::of_test();
        let (mut socket, mut partner) = pair(&account, Some(ServerAgreed { keeps_context: true })).await;
        partner
            .write_all(&frame_of(frame::TEXT | frame::COMPRESSED, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]))
            .await
            .unwrap();
        let Ok(Received::Message(message)) = socket.next().await else { panic!() };
        assert_eq!(&message.bytes[..], b"Hello");
        assert!(socket.next_now().is_none());
        assert!(account.bytes(Part::Sockets) > BUFFER + (32 << 10), "{}", account.bytes(Part::Sockets));
    }
}
