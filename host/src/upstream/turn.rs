//! Turns in reading: so that no upstream makes others wait, whatever it sends.
//!
//! All upstreams are read on one thread. One that has something to read goes on for a quarter of a millisecond, then
//! lets others have their turn. The upstreams of a tenant have their turns one after another, with those of other
//! tenants between them: a tenant has no more of the thread for having more upstreams.

use std::time::{Duration, Instant};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
};

use crate::usage::Usage;

/// How long a turn goes on.
const TURN: Duration = Duration::from_micros(250);

/// An upstream's turn.
pub struct Turn<'t> {
    usage: &'t Usage,
    /// Has one permit, for the upstream of the tenant whose turn it is.
    tenant: &'t Semaphore,
    permit: Option<SemaphorePermit<'t>>,
    began: Instant,
}

impl<'t> Turn<'t> {
    pub fn new(tenant: &'t Semaphore, usage: &'t Usage) -> Self {
        Self { usage, tenant, permit: None, began: Instant::now() }
    }

    /// Waits until it has the tenant's turn. It may be cancelled without loss.
    pub async fn begin(&mut self) {
        if self.permit.is_none() {
            // An error means that it is closed, which it never is.
            self.permit = self.tenant.acquire().await.ok();
            self.began = Instant::now();
        }
    }

    /// Leaves the turn to others: there is nothing to read, or it is about to wait for something else.
    pub fn end(&mut self) {
        if self.permit.take().is_some() {
            self.usage.worked(self.began.elapsed());
        }
    }

    /// Lets others have their turn if this one is used up, or was left before.
    pub async fn go_on(&mut self) {
        let time = self.began.elapsed();
        if self.permit.is_none() || time >= TURN {
            if self.permit.is_some() {
                self.usage.worked(time);
            }
            // The permit is kept meanwhile. Else the tenant's next upstream would go on before those of other tenants.
            yield_now().await;
            self.permit = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sync::Mutex;

    /// Uses its turn up, again and again, and notes each.
    async fn greedy(name: &'static str, tenant: Arc<Semaphore>, seen: Arc<Mutex<Vec<&'static str>>>) {
        let usage = Usage::of_test();
        let mut turn = Turn::new(&tenant, &usage);
        for _ in 0..20 {
            turn.begin().await;
            let began = Instant::now();
            while began.elapsed() < TURN {}
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
        assert!((19..=21).contains(&ones), "{ones} turns of the tenant with eight to 20: {seen:?}");
    }

    #[tokio::test]
    async fn a_turn_goes_on_until_it_is_used_up() {
        let (tenant, usage) = (Semaphore::new(1), Usage::of_test());
        let mut turn = Turn::new(&tenant, &usage);
        turn.begin().await;
        turn.go_on().await;
        assert_eq!(tenant.available_permits(), 0);
        turn.began -= TURN;
        turn.go_on().await;
        assert_eq!(tenant.available_permits(), 1);
        turn.begin().await;
        turn.end();
        assert_eq!(tenant.available_permits(), 1);
    }
}
