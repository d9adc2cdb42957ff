//! Turns in reading: so that no upstream makes others wait, whatever it sends.
//!
//! All upstreams are read on one thread. One that always has something to read goes on for a quarter of a millisecond,
//! then lets others have their turn. The upstreams of a tenant that use up their turns share one turn among them: a
//! tenant has no more of the thread for having more upstreams.

use std::{
    future::poll_fn,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
};

/// How long a turn goes on.
const TURN: Duration = Duration::from_micros(250);

/// An upstream's turn.
pub struct Turn<'t> {
    /// Has one permit, for those of the tenant's upstreams that have used up a turn.
    tenant: &'t Semaphore,
    permit: Option<SemaphorePermit<'t>>,
    began: Instant,
}

impl<'t> Turn<'t> {
    pub fn new(tenant: &'t Semaphore) -> Self {
        Self { tenant, permit: None, began: Instant::now() }
    }

    /// Waits for something. If it has to wait, the turn ends, and another begins when there is something to do.
    pub async fn wait<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = pin!(something);
        let mut has_waited = false;
        let come = poll_fn(|context| {
            let come = something.as_mut().poll(context);
            if come.is_pending() {
                has_waited = true;
                self.permit = None;
            }
            come
        });
        let come = come.await;
        if has_waited {
            self.began = Instant::now();
        }
        come
    }

    /// Lets others have their turn if this one is used up.
    pub async fn go_on(&mut self) {
        if self.began.elapsed() < TURN {
            return;
        }
        // The permit is kept meanwhile. Else the tenant's next upstream would go on before those of other tenants.
        yield_now().await;
        self.permit = None;
        // An error means that it is closed, which it never is.
        self.permit = self.tenant.acquire().await.ok();
        self.began = Instant::now();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{future::ready, sync::Arc};

    use super::*;
    use crate::sync::Mutex;

    /// Uses its turn up, again and again, and notes each.
    async fn greedy(name: &'static str, tenant: Arc<Semaphore>, seen: Arc<Mutex<Vec<&'static str>>>) {
        let mut turn = Turn::new(&tenant);
        for _ in 0..20 {
            let began = Instant::now();
            while began.elapsed() < TURN {
                turn.wait(ready(())).await;
            }
            seen.lock().push(name);
            turn.go_on().await;
        }
    }

    #[tokio::test]
    async fn tenants_have_turns_alike_however_many_upstreams_they_have() {
        let (one, other) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        let seen = Arc::default();
        let many = (0..8).map(|_| tokio::spawn(greedy("one", Arc::clone(&one), Arc::clone(&seen))));
        let mut all: Vec<_> = many.collect();
        all.push(tokio::spawn(greedy("other", other, Arc::clone(&seen))));
        for task in all {
            task.await.unwrap();
        }
        let seen = seen.lock();
        assert_eq!(seen.len(), 9 * 20);
        let end = seen.iter().rposition(|name| *name == "other").unwrap();
        let ones = seen.iter().take(end).filter(|name| **name == "one").count();
        // Each of the eight has a first turn at once.
        assert!((15..=8 + 21).contains(&ones), "{ones} turns of the tenant with eight to 20: {seen:?}");
    }

    #[tokio::test]
    async fn who_waits_for_something_keeps_nobody_waiting() {
        let tenant = Semaphore::new(1);
        let mut turn = Turn::new(&tenant);
        turn.began -= TURN;
        turn.go_on().await;
        assert_eq!(tenant.available_permits(), 0);
        tokio::time::timeout(Duration::from_millis(1), turn.wait(std::future::pending::<()>())).await.unwrap_err();
        assert_eq!(tenant.available_permits(), 1);
    }
}
