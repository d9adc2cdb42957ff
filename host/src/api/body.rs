//! Bodies on their way between a connection and a guest, one frame at a time.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, p2::body::HyperOutgoingBody};

/// How long the rest of a body that was too large is read and dropped: a connection that closes over unread bytes is
/// reset, and the answer on its way is lost.
const DRAIN: Duration = Duration::from_millis(500);

/// The body of a request. Copies are the same body.
#[derive(Clone)]
pub struct Upload(Arc<Arriving>);

struct Arriving {
    /// `None`: nobody reads it any more.
    body: Mutex<Option<Incoming>>,
    /// Bytes it may still have, changed under the lock.
    left: Mutex<usize>,
    too_large: AtomicBool,
}

impl Upload {
    pub fn new(body: Incoming, most: usize) -> Self {
        let too_large = body.size_hint().lower() > u64::try_from(most).unwrap_or(u64::MAX);
        Self(Arc::new(Arriving {
            body: Mutex::new(Some(body)),
            left: Mutex::new(most),
            too_large: AtomicBool::new(too_large),
        }))
    }

    /// It has, or says it has, more bytes than are taken.
    pub fn is_too_large(&self) -> bool {
        self.0.too_large.load(Ordering::Relaxed)
    }

    /// Nobody reads it from here on.
    pub fn end(&self) {
        drop(lock(&self.0.body).take());
    }

    /// Reads and drops what still comes, for a while.
    pub async fn drain(&self) {
        let rest = lock(&self.0.body).take();
        if let Some(mut body) = rest {
            // It ends, breaks or goes on: the answer is the same.
            let _ = timeout(DRAIN, async { while let Some(Ok(_)) = body.frame().await {} }).await;
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut body = lock(&self.0.body);
        let Some(incoming) = body.as_mut() else { return Poll::Ready(Some(Err(Error::ConnectionTerminated))) };
        let frame = ready!(Pin::new(incoming).poll_frame(context));
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        let mut left = lock(&self.0.left);
        let Some(rest) = left.checked_sub(bytes) else {
            self.0.too_large.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))));
        };
        *left = rest;
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0.body).as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of an answer: the guest's while it makes it, or the host's own.
pub struct Download {
    body: UnsyncBoxBody<Bytes, Error>,
    /// The call that made it has broken.
    broken: Arc<AtomicBool>,
}

impl Download {
    pub fn new(body: HyperOutgoingBody, broken: Arc<AtomicBool>) -> Self {
        Self { body, broken }
    }
}

impl From<Full<Bytes>> for Download {
    fn from(body: Full<Bytes>) -> Self {
        Self { body: body.map_err(Error::from).boxed_unsync(), broken: Arc::default() }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            // A guest that broke has not ended its answer: the connection ends with it instead.
            None if self.broken.load(Ordering::Acquire) => Poll::Ready(Some(Err(Error::HttpResponseIncomplete))),
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
