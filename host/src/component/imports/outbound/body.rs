//! The body of an answer that is still arriving.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::Error;

use crate::{component::imports::outbound::failure::exchanging, shutdown::Stop};

/// A body that fails when its server is silent for too long, or when its call ends.
pub struct ArrivingAnswer {
    body: Incoming,
    silence: Duration,
    /// Ends when the silence is too long.
    late: Pin<Box<Sleep>>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl ArrivingAnswer {
    pub fn new(body: Incoming, silence: Duration, mut stop: Stop) -> Self {
        let ended = Box::pin(async move { stop.wait().await });
        Self { body, silence, late: Box::pin(sleep(silence)), ended }
    }
}

impl Body for ArrivingAnswer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        // Checked first, since a dropped connection may look like the body's end.
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let until = Instant::now() + self.silence;
            self.late.as_mut().reset(until);
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| exchanging(&error))));
        }
        ready!(self.late.as_mut().poll(context));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
