//! Limits the memory that waits for a tenant's clients: messages for its handler, replies for slow sockets.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A number of bytes: how many are in use, and how many may be.
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
}

/// Bytes taken from a budget. Dropping this gives them back.
pub struct BudgetShare {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max: AtomicUsize::new(max) })
    }

    /// Changes how many bytes may be in use. Shares that are taken already stay.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a share of `bytes` bytes. `None`: fewer are left.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let share = BudgetShare { budget: Arc::clone(self), bytes };
        (used.saturating_add(bytes) <= self.max.load(Ordering::Relaxed)).then_some(share)
    }
}

impl BudgetShare {
    /// Adds another share of the same budget.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back what the share has over `bytes` bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let over = self.bytes.saturating_sub(bytes);
        self.bytes -= over;
        self.budget.used.fetch_sub(over, Ordering::Relaxed);
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(10);
        let mut first = budget.take(4).unwrap();
        first.merge(budget.take(6).unwrap());
        assert!(budget.take(1).is_none());
        first.shrink_to(7);
        assert!(budget.take(4).is_none());
        assert!(budget.take(3).is_some());
        drop(first);
        assert!(budget.take(11).is_none());
        assert!(budget.take(10).is_some());
    }
}
