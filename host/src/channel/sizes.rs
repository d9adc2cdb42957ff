//! Which of a tenant's logs are largest, to within a factor of two. To know that costs the same however many there are.

use std::{
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use indexmap::IndexMap;

use crate::{channel::Channel, sync::Mutex};

/// Sizes are told apart by their highest bit. Class 0 is apart: logs with nothing to drop but their newest chunk.
const CLASSES: usize = usize::BITS as usize + 1;
/// Members of a class that are compared exactly.
const COMPARED: usize = 8;

/// The channels whose logs have bytes, by address, in the class of their size.
pub struct Sizes(Mutex<Vec<IndexMap<usize, Weak<Channel>>>>);

/// Where a channel stands.
pub struct SizePlace {
    sizes: Arc<Sizes>,
    channel: Weak<Channel>,
    /// Changed under the lock of `sizes`. [`NOWHERE`] if it is in no class.
    class: AtomicUsize,
}

const NOWHERE: usize = CLASSES;

impl Default for Sizes {
    fn default() -> Self {
        Self(Mutex::new((0..CLASSES).map(|_| IndexMap::new()).collect()))
    }
}

impl Sizes {
    pub fn place(self: &Arc<Self>, channel: Weak<Channel>) -> SizePlace {
        SizePlace { sizes: Arc::clone(self), channel, class: AtomicUsize::new(NOWHERE) }
    }

    /// The channel with the largest log, or one with half as much. `even_newest`: one that has only its newest chunk
    /// counts, too, if no other is left.
    pub fn largest(&self, even_newest: bool) -> Option<Arc<Channel>> {
        // Dropped after the lock is given back: the last reference to a channel takes it.
        let compared: Vec<_> = {
            let classes = self.0.lock();
            let last = usize::from(!even_newest);
            let class = classes.iter().skip(last).rev().find(|class| !class.is_empty())?;
            class.values().take(COMPARED).filter_map(Weak::upgrade).collect()
        };
        compared.into_iter().max_by_key(|channel| channel.log_bytes())
    }
}

impl SizePlace {
    /// Puts the channel where its bytes belong.
    pub fn settle(&self, bytes: &AtomicUsize) {
        let class = |bytes: usize| if bytes == 0 { NOWHERE } else { 1 + bytes.ilog2() as usize };
        if self.class.load(Ordering::Relaxed) == class(bytes.load(Ordering::Relaxed)) {
            return;
        }
        let mut classes = self.sizes.0.lock();
        self.move_to(&mut classes, class(bytes.load(Ordering::Relaxed)));
    }

    /// Notes that the channel has nothing to drop but its newest chunk, or not even that: its bytes are those of a
    /// snapshot. It stands aside until its size changes.
    pub fn set_aside(&self, has_newest: bool) {
        self.move_to(&mut self.sizes.0.lock(), if has_newest { 0 } else { NOWHERE });
    }

    fn move_to(&self, classes: &mut [IndexMap<usize, Weak<Channel>>], class: usize) {
        let key = self.channel.as_ptr().addr();
        let before = self.class.swap(class, Ordering::Relaxed);
        if let Some(before) = classes.get_mut(before) {
            before.swap_remove(&key);
        }
        if let Some(after) = classes.get_mut(class) {
            after.insert(key, Weak::clone(&self.channel));
        }
    }
}

impl Drop for SizePlace {
    fn drop(&mut self) {
        let mut classes = self.sizes.0.lock();
        self.move_to(&mut classes, NOWHERE);
        mem::drop(classes);
    }
}
