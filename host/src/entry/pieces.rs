//! A large answer is written in pieces. Handshakes under way share a thread, and get their turns in between.

use std::{
    convert::Infallible,
    mem::take,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Response,
    body::{Body, Frame, SizeHint},
};

use crate::memory;

/// Bytes of a piece, of which hyper takes two at a time. To copy it, and then into a socket, takes some tens of
/// microseconds.
const PIECE: usize = 32 << 10;

/// The body of an answer.
pub struct Pieces {
    whole: Bytes,
    sent: usize,
    /// Whether a piece has gone since others had their turn.
    is_due: bool,
}

impl Pieces {
    pub fn of(response: Response<Full<Bytes>>) -> Response<Self> {
        response.map(|mut body| {
            // It has its bytes at once.
            let frame = body.frame().now_or_never().flatten().and_then(Result::ok);
            let whole = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            Self { whole, sent: 0, is_due: false }
        })
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        if take(&mut self.is_due) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_due = true;
        let rest = self.whole.get(self.sent..).unwrap_or_default();
        // Copied, so that nothing else has what is dropped later.
        let piece = Bytes::copy_from_slice(rest.get(..PIECE).unwrap_or(rest));
        self.sent += piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.whole.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.whole.len() - self.sent) as u64)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        memory::drop_later(take(&mut self.whole));
    }
}
