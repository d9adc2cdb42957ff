//! Turns in answering requests, so that it makes no difference to others how many come for one tenant.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{sync::Semaphore, task::yield_now};

/// Requests of one turn. One takes some tens of microseconds of the thread that reads all of them.
const REQUESTS: usize = 8;

/// The turns of one tenant on one thread, or of all requests that are for none.
pub struct RequestTurn {
    /// How many more there may be in this turn.
    left: Semaphore,
    count: AtomicUsize,
}

impl Default for RequestTurn {
    fn default() -> Self {
        Self { left: Semaphore::new(REQUESTS), count: AtomicUsize::new(0) }
    }
}

impl RequestTurn {
    /// Returns when a request has its turn.
    pub async fn begin(&self) {
        if let Ok(permit) = self.left.acquire().await {
            permit.forget();
        }
        if self.count.fetch_add(1, Ordering::Relaxed) % REQUESTS == REQUESTS - 1 {
            // The next of this tenant go on behind those of others.
            let _next = NextTurn(self);
            yield_now().await;
        }
    }
}

/// Begins the next turn when it is dropped.
struct NextTurn<'t>(&'t RequestTurn);

impl Drop for NextTurn<'_> {
    fn drop(&mut self) {
        self.0.left.add_permits(REQUESTS);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sync::Mutex;

    #[tokio::test]
    async fn many_requests_of_one_tenant_do_not_keep_anothers_waiting() {
        let (many, one, seen) = (Arc::<RequestTurn>::default(), RequestTurn::default(), Arc::<Mutex<usize>>::default());
        let mut requests: Vec<_> = Vec::new();
        for _ in 0..1000 {
            let (many, seen) = (Arc::clone(&many), Arc::clone(&seen));
            requests.push(tokio::spawn(async move {
                many.begin().await;
                *seen.lock() += 1;
            }));
        }
        for _ in 0..10 {
            yield_now().await;
            one.begin().await;
        }
        let before = *seen.lock();
        assert!((1..=20 * REQUESTS).contains(&before), "{before}");
        for request in requests {
            assert!(request.await.is_ok());
        }
        assert_eq!(*seen.lock(), 1000);
    }
}
