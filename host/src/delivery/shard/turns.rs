//! Whose turn it is to be read. A shard's tenants take turns, and in its tenant's turn each client, so that it makes no
//! difference to others how much somebody sends, or in how many pieces.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::delivery::ClientLimits;

/// How long a tenant's clients are read in one turn of the shard.
const TURN: Duration = Duration::from_micros(250);
/// Frames of any kind that they have handled in it.
const FRAMES: usize = 256;
/// Frames after which it is time to look at the clock.
const FRAMES_PER_LOOK: usize = 16;
/// Payload bytes that count like a frame. A compressed frame counts as what it inflates to.
const BYTES_PER_FRAME: usize = 4 << 10;

/// The clients that have something to be read.
#[derive(Default)]
pub struct ReadQueue {
    /// Slots, in the order of their turns, for each tenant that has any.
    slots: HashMap<Tenant, VecDeque<usize>>,
    /// These tenants, in the order of theirs.
    tenants: VecDeque<Tenant>,
}

/// A tenant, by the address of its limits. Should another one get the same address, they share a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(usize);

impl Tenant {
    pub fn of(limits: &ClientLimits) -> Self {
        Self(std::ptr::from_ref(limits).addr())
    }
}

impl ReadQueue {
    pub fn push(&mut self, tenant: Tenant, slot: usize) {
        let slots = self.slots.entry(tenant).or_default();
        if slots.is_empty() {
            self.tenants.push_back(tenant);
        }
        slots.push_back(slot);
    }

    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// How many tenants wait for their turn.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// The tenant whose turn it is, with its clients. Those that are left have to be [put back](Self::put_back).
    pub fn next(&mut self) -> Option<(Tenant, VecDeque<usize>)> {
        let tenant = self.tenants.pop_front()?;
        Some((tenant, self.slots.remove(&tenant)?))
    }

    /// Puts a tenant's clients in line for its next turn, before those that have come meanwhile.
    pub fn put_back(&mut self, tenant: Tenant, mut first: VecDeque<usize>) {
        let later = self.slots.remove(&tenant);
        if first.is_empty() && later.is_none() {
            return;
        }
        if later.is_none() {
            self.tenants.push_back(tenant);
        }
        first.extend(later.unwrap_or_default());
        self.slots.insert(tenant, first);
    }
}

/// One turn of a tenant.
pub struct ReadTurn {
    began: Instant,
    frames: usize,
    /// How many it had at the last look at the clock.
    looked_at: usize,
    is_over: bool,
}

impl ReadTurn {
    pub fn new() -> Self {
        Self { began: Instant::now(), frames: 0, looked_at: 0, is_over: false }
    }

    /// Counts a frame with this many bytes of payload.
    pub fn frame(&mut self, bytes: usize) {
        self.frames += 1 + bytes / BYTES_PER_FRAME;
        if self.frames >= FRAMES {
            self.is_over = true;
        } else if self.frames - self.looked_at >= FRAMES_PER_LOOK {
            self.looked_at = self.frames;
            self.is_over = self.began.elapsed() >= TURN;
        }
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_so_do_their_clients() {
        let (one, two) = (Tenant(1), Tenant(2));
        let mut queue = ReadQueue::default();
        for (tenant, slot) in [(one, 10), (one, 11), (two, 20), (one, 12)] {
            queue.push(tenant, slot);
        }
        let (tenant, mut slots) = queue.next().unwrap();
        assert_eq!((tenant, slots.pop_front()), (one, Some(10)));
        // It has more to be read, and another one comes.
        queue.push(one, 10);
        queue.push(one, 13);
        queue.put_back(one, slots);
        assert_eq!(queue.next(), Some((two, [20].into())));
        assert_eq!(queue.next(), Some((one, [11, 12, 10, 13].into())));
        queue.put_back(one, VecDeque::new());
        assert!(queue.is_empty() && queue.next().is_none());
    }

    #[test]
    fn a_turn_ends_with_its_frames_or_its_time() {
        let mut turn = ReadTurn::new();
        for _ in 1..FRAMES {
            turn.began = Instant::now();
            turn.frame(0);
            assert!(!turn.is_over());
        }
        turn.frame(0);
        assert!(turn.is_over());
        let mut turn = ReadTurn::new();
        turn.frame(FRAMES * BYTES_PER_FRAME);
        assert!(turn.is_over());
        let mut turn = ReadTurn::new();
        turn.began -= TURN;
        (0..FRAMES_PER_LOOK).for_each(|_| turn.frame(0));
        assert!(turn.is_over());
    }
}
