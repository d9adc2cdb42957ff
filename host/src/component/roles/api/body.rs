//! Bodies on their way between a connection and a guest, one frame at a time.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{task::unconstrained, time::timeout};
use wasmtime_wasi_http::{Error, p2::body::HyperOutgoingBody};

use crate::sync::Mutex;

/// How long the rest of an unwanted body is read and dropped. A connection that is closed over unread bytes is reset,
/// and the answer on its way may be lost.
const DRAIN: Duration = Duration::from_millis(500);

/// The body of a request. Clones share it.
#[derive(Clone)]
pub struct Upload(Arc<Arriving>);

struct Arriving {
    /// `None`: nobody reads it any more.
    body: Mutex<Option<Incoming>>,
    /// The bytes that may still come. Changed under the lock of `body`.
    left: Mutex<usize>,
    too_large: AtomicBool,
    /// Whether the client waits to be told to send it (RFC 9110, 10.1.1). hyper tells it at the first poll.
    held_back: AtomicBool,
}

impl Upload {
    /// Takes a body of `most` bytes at most. `expects`: the client has sent `Expect: 100-continue`.
    pub fn new(body: Incoming, most: usize, expects: bool) -> Self {
        let too_large = body.size_hint().lower() > u64::try_from(most).unwrap_or(u64::MAX);
        Self(Arc::new(Arriving {
            body: Mutex::new(Some(body)),
            left: Mutex::new(most),
            too_large: AtomicBool::new(too_large),
            held_back: AtomicBool::new(expects),
        }))
    }

    /// Says later whether all of it has come.
    pub fn arrival(&self) -> Arrival {
        Arrival(Arc::downgrade(&self.0))
    }

    /// Whether it has more bytes than are taken, or says it has.
    pub fn is_too_large(&self) -> bool {
        self.0.too_large.load(Ordering::Relaxed)
    }

    /// Reads and drops what still comes, for a while, so that the connection can take the next request, or close
    /// without a reset. From here on nobody else can read the body.
    pub async fn drain(&self) {
        let rest = self.0.body.lock().take();
        if let Some(mut body) = rest
            && !self.0.held_back.load(Ordering::Relaxed)
        {
            // Whether it ends, fails or goes on makes no difference to the answer.
            let _ = timeout(DRAIN, async { while let Some(Ok(_)) = body.frame().await {} }).await;
        }
    }
}

/// What is known of a body that others read.
pub struct Arrival(Weak<Arriving>);

impl Arrival {
    /// Whether all of the body has come, or nobody reads it any more.
    pub fn is_over(&self) -> bool {
        let arriving = self.0.upgrade();
        arriving.is_none_or(|arriving| arriving.body.lock().as_ref().is_none_or(Body::is_end_stream))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut body = self.0.body.lock();
        let Some(incoming) = body.as_mut() else { return Poll::Ready(Some(Err(Error::ConnectionTerminated))) };
        self.0.held_back.store(false, Ordering::Relaxed);
        let frame = ready!(Pin::new(incoming).poll_frame(context));
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        let mut left = self.0.left.lock();
        let Some(rest) = left.checked_sub(bytes) else {
            self.0.too_large.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))));
        };
        *left = rest;
        // Nobody needs those of a request, and a client could say in them what its headers may not.
        let frame = frame.filter(|frame| !frame.as_ref().is_ok_and(Frame::is_trailers));
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body.lock().as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// The body of an answer: the guest's, while the guest makes it, or the host's own.
pub struct Download(Arc<Mutex<Departing>>);

/// The call that makes a body.
///
/// A body of wasi-http looks whole when the guest's side of it is dropped, which happens also when a call fails. And it
/// does not end while a guest keeps its side. So a body counts as whole only if it has ended when the call ends.
pub struct Making {
    departing: Weak<Mutex<Departing>>,
    cut: Arc<AtomicBool>,
}

struct Departing {
    body: UnsyncBoxBody<Bytes, Error>,
    /// The few frames that the guest had made, and the connection had not taken, when the call ended.
    rest: VecDeque<Frame<Bytes>>,
    end: Option<BodyEnd>,
    /// Whether the body was cut off. Outlives the body.
    cut: Arc<AtomicBool>,
    /// Wakes the connection when there is a next frame.
    waker: Option<Waker>,
    /// Whether the connection has been given time to send what it has.
    flushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Whole,
    /// The connection must end with it, so that it never looks whole.
    Cut,
}

impl Download {
    fn new(body: UnsyncBoxBody<Bytes, Error>) -> Self {
        let departing =
            Departing { body, rest: VecDeque::new(), end: None, cut: Arc::default(), waker: None, flushed: false };
        Self(Arc::new(Mutex::new(departing)))
    }

    /// Makes the body of a guest's answer, and the handle by which it learns that the call has ended.
    pub fn made(body: HyperOutgoingBody) -> (Self, Making) {
        let download = Self::new(body);
        let making = Making { departing: Arc::downgrade(&download.0), cut: Arc::clone(&download.0.lock().cut) };
        (download, making)
    }
}

impl From<Full<Bytes>> for Download {
    fn from(body: Full<Bytes>) -> Self {
        Self::new(body.map_err(Error::from).boxed_unsync())
    }
}

impl Making {
    /// Ends the body with the call, while the call's store is still there. Returns false if the body was cut off, now
    /// or before. A body that nobody took to its end counts as whole.
    pub fn end(&self) -> bool {
        let Some(departing) = self.departing.upgrade() else { return !self.cut.load(Ordering::Relaxed) };
        let mut departing = departing.lock();
        let Departing { body, rest, end, waker, .. } = &mut *departing;
        while end.is_none() {
            // Without tokio's budget for this task: once that is spent, channels look empty.
            match unconstrained(body.frame()).now_or_never() {
                Some(Some(Ok(frame))) => rest.push_back(frame),
                Some(None) => *end = Some(BodyEnd::Whole),
                Some(Some(Err(_))) | None => *end = Some(BodyEnd::Cut),
            }
        }
        if let Some(waker) = waker.take() {
            waker.wake();
        }
        *end == Some(BodyEnd::Whole)
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let departing = &mut *self.0.lock();
        if let Some(frame) = departing.rest.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if departing.end.is_none() {
            departing.waker = Some(context.waker().clone());
            match ready!(Pin::new(&mut departing.body).poll_frame(context)) {
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(_)) => {
                    departing.end = Some(BodyEnd::Cut);
                    departing.cut.store(true, Ordering::Relaxed);
                }
                None => departing.end = Some(BodyEnd::Whole),
            }
        }
        if departing.end == Some(BodyEnd::Whole) {
            return Poll::Ready(None);
        }
        if departing.flushed {
            return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
        }
        // At an error hyper drops what it has not sent yet, perhaps even the answer's head. While it waits, it sends.
        departing.flushed = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let departing = self.0.lock();
        departing.rest.is_empty()
            && departing.end.is_none_or(|end| end == BodyEnd::Whole)
            && departing.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let departing = self.0.lock();
        if departing.rest.is_empty() { departing.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};

    use super::*;

    /// A guest's side of a body with one frame made, and the rest of it.
    fn begun() -> (HostOutgoingBody, Download, Making) {
        let (mut guest, body) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1024);
        guest.take_output_stream().unwrap().write("half".into()).unwrap();
        let (download, making) = Download::made(body);
        (guest, download, making)
    }

    /// What a connection gets that looks at once: a frame's bytes, `""` for the end, `None` for nothing yet.
    fn next(download: &mut Download) -> Option<Result<Bytes, Error>> {
        let frame = download.frame().now_or_never()?;
        Some(frame.map_or(Ok(Bytes::new()), |frame| frame.map(|frame| frame.into_data().unwrap())))
    }

    #[test]
    fn what_has_ended_with_the_call_is_whole_whatever_comes_then() {
        let (guest, mut download, making) = begun();
        guest.finish(None).unwrap();
        assert!(making.end());
        assert_eq!(next(&mut download).unwrap().unwrap(), "half");
        assert_eq!(next(&mut download).unwrap().unwrap(), "");
        assert!(making.end());
    }

    #[test]
    fn what_has_not_is_sent_and_then_cut_off_whether_the_guests_side_is_there_or_not() {
        for kept in [true, false] {
            let (guest, mut download, making) = begun();
            assert!(!making.end());
            let kept = kept.then_some(guest);
            assert_eq!(next(&mut download).unwrap().unwrap(), "half");
            // Time for the connection to send that.
            assert!(next(&mut download).is_none());
            assert!(next(&mut download).unwrap().is_err());
            drop(kept);
        }
    }

    #[test]
    fn what_the_guest_broke_off_is_remembered_after_the_connection() {
        let (guest, mut download, making) = begun();
        assert_eq!(next(&mut download).unwrap().unwrap(), "half");
        guest.abort();
        assert!(next(&mut download).is_none());
        assert!(next(&mut download).unwrap().is_err());
        drop(download);
        assert!(!making.end());
        // That nobody took it to its end is not the guest's fault.
        let (_guest, download, making) = begun();
        drop(download);
        assert!(making.end());
    }
}
