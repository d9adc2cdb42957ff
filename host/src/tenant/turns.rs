//! Turns on the guests' threads. A tenant's calls share its turns, so that one thread is left to other tenants however
//! many of them are busy.
//!
//! A busy guest yields at every tick of the epoch. Without turns, a tenant with forty busy calls would have forty of
//! the forty-one places in the runtime's queue, and another tenant's call would wait for all of them at each tick. With
//! turns, a tenant stands in that queue once for each thread that it may have. A call that only yields keeps its turn
//! unless another call of the tenant waits for one. A call that waits for something has no turn.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::yield_now,
};

use crate::usage::Usage;

/// Threads that guests run on: as many as cores, so that a guest that is busy for its whole deadline leaves room for
/// others.
pub fn guest_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One tenant's turns.
#[derive(Clone)]
pub struct Turns {
    permits: Arc<Semaphore>,
    /// The tenant's. `None`: the turns belong to no tenant.
    usage: Option<Arc<Usage>>,
}

/// An instance's share of its tenant's turns.
#[derive(Clone)]
pub struct TurnShare {
    turns: Turns,
    /// Whether it has yielded at a tick, and waits for nothing.
    yielded: Arc<AtomicBool>,
}

type TurnFuture = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// Whether a call has its turn.
enum Turn {
    None,
    Waits(TurnFuture),
    Has { _permit: OwnedSemaphorePermit },
}

impl Turns {
    /// One turn for the trials of all tenants' changes, as if they were one tenant more.
    pub fn of_trials() -> Self {
        Self { permits: Arc::new(Semaphore::new(1)), usage: None }
    }

    /// Makes a turn for each thread but one, and at least one turn.
    pub fn new(threads: usize, usage: &Arc<Usage>) -> Self {
        let permits = Arc::new(Semaphore::new(threads.saturating_sub(1).max(1)));
        Self { permits, usage: Some(Arc::clone(usage)) }
    }

    pub fn share(&self) -> TurnShare {
        TurnShare { turns: self.clone(), yielded: Arc::default() }
    }
}

impl TurnShare {
    /// Notes that the instance yields at a tick of the epoch.
    pub fn yields(&self) {
        self.yielded.store(true, Ordering::Relaxed);
    }

    /// Lets others have their turn in the middle of what the host does for the instance.
    pub async fn pass(&self) {
        self.yields();
        yield_now().await;
    }

    /// Runs a call, which goes on only while it has a turn. The tenant's calls take turns in the order in which they
    /// asked. Returns how long it took, too.
    pub async fn take<F: Future>(&self, call: F) -> (F::Output, Duration) {
        let mut call = pin!(call);
        let mut turn = Turn::None;
        let began = Instant::now();
        let mut first = Some(began);
        std::future::poll_fn(|context| {
            turn.take(&self.turns, context);
            let first = first.take();
            if !matches!(turn, Turn::Has { .. }) {
                return Poll::Pending;
            }
            // Most calls have one turn, and at once: then the clock is looked at twice in all.
            let from = first.unwrap_or_else(Instant::now);
            let polled = call.as_mut().poll(context);
            let now = Instant::now();
            if let Some(usage) = &self.turns.usage {
                usage.worked(now - from);
            }
            if polled.is_pending() {
                turn = Turn::None;
                if self.yielded.swap(false, Ordering::Relaxed) {
                    // It stands behind those that wait. If none does, it has its turn again at once.
                    turn.take(&self.turns, context);
                }
            }
            polled.map(|output| (output, now - began))
        })
        .await
    }
}

impl Turn {
    /// Takes a turn, or waits in line for one.
    fn take(&mut self, turns: &Turns, context: &mut Context<'_>) {
        if matches!(self, Self::None) {
            *self = match Arc::clone(&turns.permits).try_acquire_owned() {
                Ok(permit) => Self::Has { _permit: permit },
                Err(_) => Self::Waits(Box::pin(Arc::clone(&turns.permits).acquire_owned())),
            };
        }
        // The semaphore is never closed.
        if let Self::Waits(waiting) = self
            && let Poll::Ready(Ok(permit)) = waiting.as_mut().poll(context)
        {
            *self = Self::Has { _permit: permit };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    /// A tenant's turns on two threads.
    fn turns() -> Turns {
        Turns::new(2, &Usage::of_test())
    }

    /// As a busy guest does at a tick: it is ready again at once.
    async fn tick(share: &TurnShare) {
        share.yields();
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Steps that a tenant's busy calls take on a thread while another's takes ten.
    async fn steps_beside(busy_turns: impl Fn() -> Turns, calls: usize) -> usize {
        let steps = Arc::new(AtomicUsize::new(0));
        let mut busy = JoinSet::new();
        for _ in 0..calls {
            let (share, steps) = (busy_turns().share(), Arc::clone(&steps));
            busy.spawn(async move {
                let call = async {
                    loop {
                        steps.fetch_add(1, Ordering::Relaxed);
                        tick(&share).await;
                    }
                };
                share.take(call).await.0
            });
        }
        let counted = Arc::clone(&steps);
        let other = tokio::spawn(async move {
            let before = counted.load(Ordering::Relaxed);
            let share = turns().share();
            let call = async {
                for _ in 0..10 {
                    tick(&share).await;
                }
            };
            share.take(call).await;
            counted.load(Ordering::Relaxed) - before
        });
        other.await.unwrap()
    }

    #[tokio::test]
    async fn a_tenant_with_many_busy_calls_is_one_in_the_queue() {
        let all = turns();
        // One step each time that the other waits for its turn, and some while forty find out that it is not theirs.
        let steps = steps_beside(|| all.clone(), 40).await;
        assert!(steps <= 40, "{steps}");
        assert!(steps_beside(turns, 40).await >= 300, "forty tenants would have forty places");
    }

    #[tokio::test]
    async fn all_of_a_tenants_calls_come_to_their_turn() {
        let share = turns().share();
        let counts: Vec<_> = (0..5).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let calls = counts.iter().map(|count| {
            share.take(async {
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
        let share = turns().share();
        let stuck = tokio::spawn({
            let share = share.clone();
            async move { share.take(std::future::pending::<()>()).await.0 }
        });
        yield_now().await;
        timeout(Duration::from_secs(1), share.take(yield_now())).await.unwrap();
        let waits = share.take(async {
            // Inside its own turn another of the tenant waits, and is dropped.
            let mut other = Box::pin(share.take(yield_now()));
            assert!(futures_util::poll!(other.as_mut()).is_pending());
            drop(other);
        });
        waits.await;
        timeout(Duration::from_secs(1), share.take(yield_now())).await.unwrap();
        stuck.abort();
    }
}
