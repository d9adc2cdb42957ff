//! Bodies of HTTP messages, which a tenant's rates bound like all that goes in and out.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::usage::{Pause, Received, Usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

/// A body whose bytes are noted, and which waits while its tenant is over a rate.
pub struct Metered<B> {
    body: B,
    pause: Pause,
    /// `None`: the body is no tenant's.
    usage: Option<(Arc<Usage>, Direction)>,
}

impl<B> Metered<B> {
    pub fn new(body: B, usage: &Arc<Usage>, direction: Direction) -> Self {
        let mut pause = Pause::default();
        pause.until(usage.wait(direction, Instant::now()));
        Self { body, pause, usage: Some((Arc::clone(usage), direction)) }
    }

    /// A body that the host sends on its own account.
    pub fn free(body: B) -> Self {
        Self { body, pause: Pause::default(), usage: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Metered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, pause, usage } = &mut *self;
        while pause.is_on() {
            ready!(pause.poll(context));
            pause.until(usage.as_ref().and_then(|(usage, direction)| usage.wait(*direction, Instant::now())));
        }
        let frame = ready!(Pin::new(body).poll_frame(context));
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        if bytes > 0
            && let Some((usage, direction)) = usage
        {
            let now = Instant::now();
            pause.until(match direction {
                Direction::In => usage.received(Received { bytes, ..Received::default() }, now),
                Direction::Out => usage.sent(bytes, now),
            });
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use config::TenantLimits;
    use http_body_util::{BodyExt as _, Full};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_body_of_a_tenant_over_its_rate_waits() {
        for direction in [Direction::In, Direction::Out] {
            let usage = Usage::of_test();
            usage.set(&TenantLimits { bytes_in_per_second: 1000, bytes_out_per_second: 1000, ..Default::default() });
            let metered = |bytes: usize| Metered::new(Full::from(vec![0; bytes]), &usage, direction);
            assert_eq!(metered(900).collect().await.unwrap().to_bytes().len(), 900);
            let mut body = metered(1000);
            assert!(body.frame().await.is_some());
            let waits = timeout(Duration::from_millis(100), body.frame()).await;
            assert!(waits.is_err(), "900 bytes are over");
            assert_eq!(Metered::free(Full::from("free")).collect().await.unwrap().to_bytes(), "free");
        }
    }
}
