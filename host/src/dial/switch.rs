//! One request on a fresh connection, whose answer makes something else of the connection: an upgrade, or CONNECT.
//!
//! hyper reads the answer, and then gives the connection back with what it has read beyond the head.

use std::{
    error::Error as _,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1,
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};

/// Most bytes of an answer that are read before its head is whole, with all interim answers (RFC 9110 section 15.2).
const MAX_HEAD: usize = 64 << 10;
/// Most header fields of an answer.
const MAX_FIELDS: usize = 1024;
/// Bytes that are kept of another answer's body, and how long they are waited for.
const BODY: usize = 200;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// How the server answered.
pub enum Answered<S> {
    Switched { head: Parts, stream: S, rest: Bytes },
    Refused(PlainAnswer),
}

/// An answer that leaves the connection as it was.
#[derive(Debug)]
pub struct PlainAnswer {
    pub head: Parts,
    /// The beginning of its body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.source().map_or_else(|| .0.to_string(), |source| format!("{} ({source})", .0)))]
pub struct Unanswered(#[from] hyper::Error);

impl Unanswered {
    /// The socket's error, if it is one.
    pub fn io(&self) -> Option<&io::Error> {
        self.0.source()?.downcast_ref()
    }

    /// Whether the server ended the connection before its answer was whole.
    pub fn is_end(&self) -> bool {
        self.0.is_incomplete_message() || self.0.is_canceled() || self.0.is_closed()
    }
}

/// Sends a request and reads the head of its answer. Interim answers are passed over. The body of another answer is
/// read for a moment, and not beyond `until`.
pub async fn ask<S>(stream: S, request: Request<Empty<Bytes>>, until: Instant) -> Result<Answered<S>, Unanswered>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connects = request.method() == Method::CONNECT;
    let mut http = http1::Builder::new();
    // Some servers know the names of fields in the spelling of the RFCs alone, or nearly.
    http.title_case_headers(true).max_headers(MAX_FIELDS).max_buf_size(MAX_HEAD);
    // RFC 9112 section 5.2.
    http.allow_obsolete_multiline_headers_in_responses(true);
    let io = TokioIo::new(Bounded { stream, left: MAX_HEAD });
    let (mut sender, mut connection) = http.handshake(io).await?;
    let answer = {
        let mut answered = pin!(sender.send_request(request));
        poll_fn(|cx| {
            let driven = connection.poll_without_shutdown(cx);
            match (answered.as_mut().poll(cx), driven) {
                (Poll::Ready(answer), _) => Poll::Ready(answer),
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                // When the connection has ended the answer is next.
                (Poll::Pending, _) => Poll::Pending,
            }
        })
        .await?
    };
    let is_switched = match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => !connects,
        status => connects && status.is_success(),
    };
    if is_switched {
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        let (head, _) = answer.into_parts();
        return Ok(Answered::Switched { head, stream: io.into_inner().stream, rest: read_buf });
    }
    let until = until.min(Instant::now() + BODY_TIMEOUT);
    Ok(Answered::Refused(plain(answer, connection, until).await))
}

/// Reads the beginning of the body.
async fn plain<S>(
    answer: Response<Incoming>,
    mut connection: http1::Connection<S, Empty<Bytes>>,
    until: Instant,
) -> PlainAnswer
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let (head, mut incoming) = answer.into_parts();
    let mut body = Vec::new();
    let mut has_ended = false;
    let reading = poll_fn(|cx| {
        loop {
            match Pin::new(&mut incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    body.extend_from_slice(frame.data_ref().map_or(&[][..], AsRef::as_ref));
                    if body.len() >= BODY {
                        return Poll::Ready(());
                    }
                }
                // The status says enough.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending if has_ended => return Poll::Ready(()),
                Poll::Pending => match connection.poll_without_shutdown(cx) {
                    // What it has read before its end is in the body.
                    Poll::Ready(_) => has_ended = true,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    });
    let _ = timeout_at(until, reading).await;
    body.truncate(BODY);
    PlainAnswer { head, body }
}

/// A socket from which a bounded number of bytes is read.
struct Bounded<S> {
    stream: S,
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            let why = format!("no end of the answer's head within {MAX_HEAD} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.left = self.left.saturating_sub(buffer.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
