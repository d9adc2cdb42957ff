//! A socket that remembers when bytes last came from it, and charges them to the tenant.
//!
//! So a large message on a slow line is a sign of life before it is whole, and its bytes are the tenant's.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    account::{Account, Charge, Part},
    sync::Mutex,
};

/// When bytes last came, and those of them that are not a whole message yet. Clones share it.
#[derive(Clone)]
pub struct LastRead(Arc<Mutex<Reading>>);

struct Reading {
    at: Instant,
    /// How many bytes the last read brought.
    last: usize,
    /// Bytes that were read since the last message: at least those of the message that is on its way.
    unfinished: usize,
    /// The most that this ever was. The WebSocket library keeps a buffer as large as the largest frame.
    most: usize,
    /// Both, on the tenant's account.
    charge: Charge,
}

impl Reading {
    /// Charges what there is now. `false`: it does not fit.
    fn settle(&mut self) -> bool {
        self.most = self.most.max(self.unfinished);
        self.charge.set(self.unfinished + self.most)
    }
}

impl LastRead {
    pub fn now(account: &Arc<Account>) -> Self {
        let charge = Charge::new(account, Part::Sockets);
        Self(Arc::new(Mutex::new(Reading { at: Instant::now(), last: 0, unfinished: 0, most: 0, charge })))
    }

    pub fn elapsed(&self) -> Duration {
        self.0.lock().at.elapsed()
    }

    /// Notes that all whole messages are taken. The rest is no more than the last read brought, since nothing is read
    /// while there is a whole message.
    pub fn messages_taken(&self) {
        let mut reading = self.0.lock();
        reading.at = Instant::now();
        reading.unfinished = reading.unfinished.min(reading.last);
        // It is no more than before.
        reading.settle();
    }

    /// Notes that bytes have come.
    fn received(&self, bytes: usize) -> io::Result<()> {
        let mut reading = self.0.lock();
        (reading.at, reading.last) = (Instant::now(), bytes);
        reading.unfinished += bytes;
        reading
            .settle()
            .then_some(())
            .ok_or_else(|| io::Error::new(io::ErrorKind::OutOfMemory, "the tenant's memory is full"))
    }
}

/// A socket that notes when bytes come.
pub struct Listening<S> {
    socket: S,
    last_read: LastRead,
}

impl<S> Listening<S> {
    pub fn new(socket: S, last_read: LastRead) -> Self {
        Self { socket, last_read }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.last_read.received(bytes)?;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
