//! A mailbox: many threads put items into it, one takes them out.
//!
//! `tests/loom` compiles this file a second time, with loom's locks, and tries every order in which threads can use it.

use crate::sync::Mutex;

/// Items in the order in which they came, until the mailbox is closed.
pub struct Mailbox<T>(Mutex<Option<Vec<T>>>);

impl<T> Mailbox<T> {
    pub fn new() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    /// Adds an item. True: the mailbox was empty, so the caller must wake the thread that takes items. A closed mailbox
    /// drops the item.
    pub fn push(&self, item: T) -> bool {
        let mut waiting = self.0.lock();
        let Some(items) = &mut *waiting else { return false };
        let was_empty = items.is_empty();
        items.push(item);
        was_empty
    }

    /// Takes all items, and leaves the empty vector `into` in their place.
    pub fn take(&self, into: &mut Vec<T>) {
        if let Some(items) = &mut *self.0.lock() {
            std::mem::swap(items, into);
        }
    }

    /// Takes all items, and closes the mailbox for later ones.
    pub fn close(&self) -> Option<Vec<T>> {
        self.0.lock().take()
    }
}
