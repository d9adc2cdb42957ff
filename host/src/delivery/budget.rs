//! Limits the memory that waits for a tenant's clients: messages for its handler, what that wants done, replies for
//! slow sockets.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::account::{Account, Charge, Part};

/// A number of bytes of the tenant's account: how many are in use, and how many may be.
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    account: Arc<Account>,
}

/// Bytes taken from a budget. Dropping this gives them back.
pub struct BudgetShare {
    budget: Arc<Budget>,
    charge: Charge,
}

impl Budget {
    pub fn new(max: usize, account: Arc<Account>) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max: AtomicUsize::new(max), account })
    }

    /// Changes how many bytes may be in use. Shares that are taken already stay.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a share of `bytes` bytes. `None`: fewer are left, here or on the tenant's account.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        self.take_if(bytes, |used, max| used.saturating_add(bytes) <= max)
    }

    /// Takes a share that may be larger than the budget if nobody else has one.
    pub fn take_alone(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        self.take_if(bytes, |used, max| used == 0 || used.saturating_add(bytes) <= max)
    }

    fn take_if(self: &Arc<Self>, bytes: usize, fits: impl FnOnce(usize, usize) -> bool) -> Option<BudgetShare> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = fits(used, self.max.load(Ordering::Relaxed));
        match fits.then(|| Charge::take(&self.account, Part::Queues, bytes)).flatten() {
            Some(charge) => Some(BudgetShare { budget: Arc::clone(self), charge }),
            None => {
                self.used.fetch_sub(bytes, Ordering::Relaxed);
                None
            }
        }
    }
}

impl BudgetShare {
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Adds another share of the same budget.
    pub fn merge(&mut self, other: Self) {
        let bytes = other.bytes();
        // What is merged stays in use.
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.charge.add(bytes);
    }

    /// Takes some of its bytes out, as a share of their own.
    pub fn split(&mut self, bytes: usize) -> Self {
        Self { budget: Arc::clone(&self.budget), charge: self.charge.split(bytes) }
    }

    /// Gives back what the share has over `bytes` bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let over = self.bytes().saturating_sub(bytes);
        self.charge.set(self.bytes() - over);
        self.budget.used.fetch_sub(over, Ordering::Relaxed);
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(10, Account::of_test());
        let mut first = budget.take(4).unwrap();
        first.merge(budget.take(6).unwrap());
        assert!(budget.take(1).is_none());
        first.shrink_to(7);
        assert!(budget.take(4).is_none());
        assert!(budget.take(3).is_some());
        drop(first);
        assert!(budget.take(11).is_none());
        assert!(budget.take(10).is_some());
        let alone = budget.take_alone(100).unwrap();
        assert!(budget.take_alone(1).is_none());
        drop(alone);
        assert!(budget.take(10).is_some());
    }
}
