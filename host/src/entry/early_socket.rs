//! A socket that is watched only if its handshake has to wait for it. Most requests have arrived by the time that their
//! connection is accepted, and their answers are taken at once: such a socket goes to its shard, which watches it, and
//! nobody has watched it before.

use std::{
    io,
    io::{ErrorKind, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net,
};

/// How often nothing may be there to read, or no room to write, before a socket is watched: hyper looks for more behind
/// a request before it is answered, and again when the tenant's next turn comes.
const TRIES: u8 = 2;

/// Bytes of the first read: a usual request. They are zeroed first.
const FIRST_READ: usize = 2 << 10;

pub struct EarlySocket {
    stage: Stage,
    /// How often it was read from, and written to, for nothing.
    empty_reads: u8,
    full_writes: u8,
}

enum Stage {
    Early(TcpStream),
    Watched(net::TcpStream),
    /// It could not be watched.
    Broken,
}

impl EarlySocket {
    /// `socket` must not block.
    pub fn new(socket: TcpStream) -> Self {
        Self { stage: Stage::Early(socket), empty_reads: 0, full_writes: 0 }
    }

    pub fn into_std(self) -> io::Result<TcpStream> {
        match self.stage {
            Stage::Early(socket) => Ok(socket),
            Stage::Watched(socket) => socket.into_std(),
            Stage::Broken => Err(broken()),
        }
    }

    /// The socket, if nobody watches it and nobody has to after this many tries.
    fn early(&mut self, tries: u8) -> Option<&mut TcpStream> {
        match &mut self.stage {
            Stage::Early(socket) if tries < TRIES => Some(socket),
            _ => None,
        }
    }

    fn watched(&mut self) -> io::Result<Pin<&mut net::TcpStream>> {
        if let Stage::Early(_) = &self.stage
            && let Stage::Early(socket) = std::mem::replace(&mut self.stage, Stage::Broken)
        {
            self.stage = Stage::Watched(net::TcpStream::from_std(socket)?);
        }
        match &mut self.stage {
            Stage::Watched(socket) => Ok(Pin::new(socket)),
            Stage::Early(_) | Stage::Broken => Err(broken()),
        }
    }
}

/// What a try without anybody watching leads to. If the handshake goes on without it, nobody ever need watch. Else it
/// is polled again at once.
fn tried<T>(count: &mut u8, context: &Context<'_>, result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            *count += 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }
        result => Poll::Ready(result),
    }
}

fn broken() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the socket could not be watched")
}

impl AsyncRead for EarlySocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tries = self.empty_reads;
        if let Some(socket) = self.early(tries) {
            let length = buffer.remaining().min(FIRST_READ);
            let read = socket.read(buffer.initialize_unfilled_to(length)).map(|length| buffer.advance(length));
            return tried(&mut self.empty_reads, context, read);
        }
        self.watched()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for EarlySocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tries = self.full_writes;
        if let Some(socket) = self.early(tries) {
            let written = socket.write(bytes);
            return tried(&mut self.full_writes, context, written);
        }
        self.watched()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tries = self.full_writes;
        if let Some(socket) = self.early(tries) {
            let written = socket.write_vectored(slices);
            return tried(&mut self.full_writes, context, written);
        }
        self.watched()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Early(socket) => Poll::Ready(socket.shutdown(Shutdown::Write)),
            Stage::Watched(socket) => Pin::new(socket).poll_shutdown(context),
            Stage::Broken => Poll::Ready(Err(broken())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// More than what the system keeps for a socket whose peer does not read.
    const LARGE: usize = 16 << 20;

    /// A socket at which these bytes have arrived.
    fn pair(sent: &[u8]) -> (EarlySocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        peer.write_all(sent).unwrap();
        if !sent.is_empty() {
            socket.peek(&mut [0]).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        (EarlySocket::new(socket), peer)
    }

    fn is_watched(socket: &EarlySocket) -> bool {
        matches!(socket.stage, Stage::Watched(_))
    }

    #[tokio::test]
    async fn what_has_arrived_is_read_and_answered_without_watching() {
        let (mut socket, mut peer) = pair(b"request");
        let mut request = [0; 7];
        socket.read_exact(&mut request).await.unwrap();
        socket.write_all(b"answer").await.unwrap();
        assert!(!is_watched(&socket));
        assert_eq!(&request, b"request");
        let mut answer = [0; 6];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }

    #[tokio::test]
    async fn what_comes_in_pieces_is_waited_for_and_the_end_is_seen() {
        let (mut socket, mut peer) = pair(b"");
        for piece in [b"one", b"two", b"end"] {
            assert!(socket.read_u8().now_or_never().is_none());
            peer.write_all(piece).unwrap();
            let mut read = [0; 3];
            socket.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, piece);
        }
        assert!(is_watched(&socket));
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
        // Its peer has ended its own side only.
        socket.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_sent_later_in_order() {
        let (mut socket, mut peer) = pair(b"");
        let sent: Vec<u8> = (0_u32..).flat_map(u32::to_le_bytes).take(LARGE).collect();
        let (mut length, mut full) = (0, 0);
        while full <= TRIES {
            match socket.write(&sent[length..]).now_or_never() {
                Some(written) => length += written.unwrap(),
                None => full += 1,
            }
        }
        assert!(length < LARGE, "the system keeps all of it");
        let reads = thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        socket.write_all(&sent[length..]).await.unwrap();
        assert!(is_watched(&socket));
        socket.shutdown().await.unwrap();
        assert!(reads.join().unwrap() == sent);
    }

    #[tokio::test]
    async fn the_socket_is_given_back_with_what_is_not_read_yet() {
        for waits in [false, true] {
            let (mut socket, mut peer) = pair(b"request");
            let mut request = [0; 7];
            socket.read_exact(&mut request).await.unwrap();
            for _ in 0..if waits { TRIES + 1 } else { 0 } {
                assert!(socket.read_u8().now_or_never().is_none());
            }
            assert_eq!(is_watched(&socket), waits);
            peer.write_all(b"behind").unwrap();
            let mut given_back = socket.into_std().unwrap();
            given_back.set_nonblocking(false).unwrap();
            let mut behind = [0; 6];
            given_back.read_exact(&mut behind).unwrap();
            assert_eq!(&behind, b"behind");
        }
    }
}
