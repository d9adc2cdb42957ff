//! Connections whose client has ended its own side and waits for an answer, as `nc` and some proxies do.

use std::{
    io,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that hides its end while a request is answered, and until the answer is sent. hyper would take it for
/// that of the client, and drop the answer. A reset that comes before the end is not hidden.
pub struct HalfOpen<S, F> {
    socket: S,
    /// Whether a request is being answered.
    answers: F,
    /// Whether hyper has something that it has not sent yet.
    unsent: bool,
    /// Whether the end was hidden since hyper was last told to look again.
    hidden: bool,
}

impl<S, F> HalfOpen<S, F> {
    pub fn new(socket: S, answers: F) -> Self {
        Self { socket, answers, unsent: false, hidden: false }
    }

    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: AsyncRead + Unpin, F: Fn() -> bool + Unpin> AsyncRead for HalfOpen<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        let is_end = matches!(read, Poll::Ready(Ok(()))) && buffer.remaining() > 0 && buffer.filled().len() == before;
        self.hidden = is_end && (self.unsent || (self.answers)());
        if self.hidden { Poll::Pending } else { read }
    }
}

impl<S: AsyncWrite + Unpin, F: Fn() -> bool + Unpin> AsyncWrite for HalfOpen<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unsent = true;
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has sent all that it had, and asks in every round.
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.unsent &= flushed.is_pending();
        if self.hidden && !self.unsent && !(self.answers)() {
            // It may see the end now.
            self.hidden = false;
            context.waker().wake_by_ref();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
