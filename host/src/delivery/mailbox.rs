//! What waits for one thread, put there by many.
//!
//! Compiled a second time with loom's locks by `tests/loom`, which tries every order of what threads do with it.

use crate::sync::Mutex;

/// Items in the order in which they came, until it is closed.
pub struct Mailbox<T>(Mutex<Option<Vec<T>>>);

impl<T> Mailbox<T> {
    pub fn new() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    /// Adds an item; true: it is the first since the last were taken, so the taker must be woken. Once it is closed items
    /// are dropped.
    pub fn push(&self, item: T) -> bool {
        let mut waiting = self.0.lock();
        let Some(items) = &mut *waiting else { return false };
        let was_empty = items.is_empty();
        items.push(item);
        was_empty
    }

    /// Swaps all items for an empty vector.
    pub fn take(&self, into: &mut Vec<T>) {
        if let Some(items) = &mut *self.0.lock() {
            std::mem::swap(items, into);
        }
    }

    /// Takes all items, now and from now on.
    pub fn close(&self) -> Option<Vec<T>> {
        self.0.lock().take()
    }
}
