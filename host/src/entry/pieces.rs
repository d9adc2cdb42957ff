//! A large answer is written in pieces. Handshakes under way share a thread, and get their turns in between.

use std::{
    convert::Infallible,
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

/// Bytes of a piece. To copy it into a socket takes some tens of microseconds.
const PIECE: usize = 64 << 10;

/// The rest of a body.
pub struct Pieces {
    rest: Bytes,
    /// Whether a piece has gone since others had their turn.
    is_due: bool,
}

impl Pieces {
    pub fn of(response: Response<Full<Bytes>>) -> Response<Self> {
        response.map(|mut body| {
            // It has its bytes at once.
            let frame = body.frame().now_or_never().flatten().and_then(Result::ok);
            let rest = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            Self { rest, is_due: false }
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
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.is_due) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_due = true;
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
