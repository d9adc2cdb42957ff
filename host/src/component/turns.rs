//! Whose turn it is on the guests' threads: a tenant's calls share its turns, so that however many of them are busy, one
//! thread is left to the others.
//!
//! A busy guest yields at every tick of the epoch. Without turns a tenant with forty busy calls would have forty of the
//! forty-one places in the runtime's queue, and another's call would wait for all of them at each tick; with turns a tenant
//! stands in that queue once for each thread that it may have.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// One tenant's turns.
#[derive(Clone)]
pub struct Turns(Arc<Semaphore>);

type Waiting = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl Turns {
    /// All threads but one, and at least one.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads.saturating_sub(1).max(1))))
    }

    /// Runs a call that goes on only while it is the tenant's turn, which it gives back whenever it yields or waits. The
    /// tenant's calls come in the order in which they have asked.
    pub async fn take<F: Future>(&self, call: F) -> F::Output {
        let mut call = pin!(call);
        let mut waiting: Option<Waiting> = None;
        std::future::poll_fn(|context| {
            // A permit that is free is nobody's: those that wait are given theirs at once.
            let _turn = match waiting.take() {
                None => match Arc::clone(&self.0).try_acquire_owned() {
                    Ok(turn) => turn,
                    Err(_) => {
                        let mut acquire: Waiting = Box::pin(Arc::clone(&self.0).acquire_owned());
                        match acquire.as_mut().poll(context) {
                            Poll::Ready(Ok(turn)) => turn,
                            // It is never closed.
                            _ => {
                                waiting = Some(acquire);
                                return Poll::Pending;
                            }
                        }
                    }
                },
                Some(mut acquire) => match acquire.as_mut().poll(context) {
                    Poll::Ready(Ok(turn)) => turn,
                    _ => {
                        waiting = Some(acquire);
                        return Poll::Pending;
                    }
                },
            };
            call.as_mut().poll(context)
        })
        .await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::{task::yield_now, time::timeout};

    use super::*;

    /// Steps that one's calls take until another's has taken ten.
    async fn steps_beside(turns: &Turns, calls: usize) -> usize {
        let steps = Arc::new(AtomicUsize::new(0));
        let mut busy = tokio::task::JoinSet::new();
        for _ in 0..calls {
            let (turns, steps) = (turns.clone(), Arc::clone(&steps));
            busy.spawn(async move {
                turns
                    .take(async {
                        loop {
                            steps.fetch_add(1, Ordering::Relaxed);
                            yield_now().await;
                        }
                    })
                    .await
            });
        }
        yield_now().await;
        let before = steps.load(Ordering::Relaxed);
        let other = Turns::new(2);
        for _ in 0..10 {
            other.take(yield_now()).await;
        }
        steps.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn a_tenant_with_many_busy_calls_is_one_in_the_queue() {
        // One step each time that the other waits for its turn, and some for the scheduler's own liberties.
        assert!(steps_beside(&Turns::new(2), 1).await <= 40);
        assert!(steps_beside(&Turns::new(2), 40).await <= 60, "forty calls have forty places");
    }

    #[tokio::test]
    async fn all_of_a_tenants_calls_come_to_their_turn() {
        let turns = Turns::new(2);
        let counts: Vec<_> = (0..5).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let calls = counts.iter().map(|count| {
            turns.take(async {
                for _ in 0..100 {
                    count.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            })
        });
        timeout(Duration::from_secs(10), futures_util::future::join_all(calls)).await.unwrap();
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 100));
    }

    #[tokio::test]
    async fn what_waits_holds_no_turn_and_what_is_dropped_gives_it_back() {
        let turns = Turns::new(2);
        let stuck = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(std::future::pending::<()>()).await }
        });
        yield_now().await;
        timeout(Duration::from_secs(1), turns.take(yield_now())).await.unwrap();
        let waits = turns.take(async {
            // Inside its own turn another of the tenant waits, and is dropped.
            let mut other = Box::pin(turns.take(yield_now()));
            assert!(futures_util::poll!(other.as_mut()).is_pending());
            drop(other);
        });
        waits.await;
        timeout(Duration::from_secs(1), turns.take(yield_now())).await.unwrap();
        stuck.abort();
    }
}
