//! Whose turn it is to be read, to be written to, or to have something done. A shard's tenants take turns, and in its
//! tenant's turn each client, so that it makes no difference to others how much somebody sends, or in how many pieces,
//! has to be sent, or asks for.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{delivery::ClientLimits, usage::Received};

/// How long a tenant's clients are read, or written to, in one turn: little beside the 2 ms in which a neighbour's
/// slowest message comes, and much beside the 25 ns that a look at the clock takes.
const TURN: Duration = Duration::from_micros(250);
/// How long all tenants' turns may take before the shard sees to its other work.
const LAP: Duration = Duration::from_millis(1);
/// Frames of any kind that one turn has at most.
const FRAMES: usize = 256;
/// Frames after which it is time to look at the clock. One takes up to a microsecond.
const FRAMES_PER_LOOK: usize = 16;
/// Payload bytes that count like a frame.
const BYTES_PER_FRAME: usize = 4 << 10;
/// Frames that it counts as when a client is removed.
const REMOVAL: usize = 8;
/// And a command.
const COMMAND: usize = 8;

/// Clients in line, by tenant.
#[derive(Default)]
pub struct Lines {
    lines: HashMap<Tenant, VecDeque<usize>>,
    /// The tenants that have a line, but for the one whose turn it is and those that pause, in the order of their
    /// turns.
    tenants: VecDeque<Tenant>,
    /// Tenants that may have no turn before a time. Their lines may be empty.
    paused: Vec<(Instant, Tenant)>,
    /// Tenants whose pause has ended, and which have had no turn since.
    resumed: HashSet<Tenant>,
    /// How many places in a tenant's line are of clients that are gone. A slot may have another client by now, which
    /// stands behind them.
    gone: HashMap<(Tenant, usize), usize>,
}

/// A tenant, by the address of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(usize);

impl Tenant {
    pub fn of(limits: &ClientLimits) -> Self {
        Self(std::ptr::from_ref(limits).addr())
    }
}

impl Lines {
    /// Puts a client at the end of its tenant's line.
    pub fn push(&mut self, tenant: Tenant, slot: usize) {
        let tenants = &mut self.tenants;
        let line = self.lines.entry(tenant).or_insert_with(|| {
            tenants.push_back(tenant);
            VecDeque::new()
        });
        line.push_back(slot);
    }

    /// Notes that a client which stands in line is gone.
    pub fn forget(&mut self, tenant: Tenant, slot: usize) {
        *self.gone.entry((tenant, slot)).or_default() += 1;
    }

    /// Whether nobody may have a turn now.
    pub fn is_idle(&self) -> bool {
        self.tenants.is_empty()
    }

    /// When the first pause ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.paused.iter().map(|(until, _)| *until).min()
    }

    /// Ends the pauses whose time has come.
    pub fn end_pauses(&mut self, now: Instant) {
        let Self { lines, tenants, paused, resumed, .. } = self;
        paused.retain(|(until, tenant)| {
            let goes_on = *until > now;
            if !goes_on {
                match lines.get(tenant) {
                    Some(line) if !line.is_empty() => {
                        tenants.push_back(*tenant);
                        resumed.insert(*tenant);
                    }
                    _ => drop(lines.remove(tenant)),
                }
            }
            goes_on
        });
    }

    /// How many tenants wait for their turn.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// The tenant whose turn it is. Its turn has to be [ended](Self::end_turn).
    pub fn begin_turn(&mut self) -> Option<Tenant> {
        self.tenants.pop_front()
    }

    /// Whether the tenant has just paused, so that it has to be asked whether it may go on.
    pub fn has_paused(&mut self, tenant: Tenant) -> bool {
        !self.resumed.is_empty() && self.resumed.remove(&tenant)
    }

    /// Puts a client at the front of its tenant's line.
    pub fn put_back(&mut self, tenant: Tenant, slot: usize) {
        if let Some(line) = self.lines.get_mut(&tenant) {
            line.push_front(slot);
        }
    }

    /// The next client of the tenant whose turn it is.
    pub fn next_of(&mut self, tenant: Tenant) -> Option<usize> {
        let line = self.lines.get_mut(&tenant)?;
        while let Some(slot) = line.pop_front() {
            match self.gone.get_mut(&(tenant, slot)) {
                None => return Some(slot),
                Some(1) => drop(self.gone.remove(&(tenant, slot))),
                Some(more) => *more -= 1,
            }
        }
        None
    }

    /// `until`: when it may have its next turn.
    pub fn end_turn(&mut self, tenant: Tenant, until: Option<Instant>) {
        if let Some(until) = until {
            // Kept, even if it is empty, so that who comes meanwhile waits, too.
            self.paused.push((until, tenant));
        } else if self.lines.get(&tenant).is_none_or(VecDeque::is_empty) {
            self.lines.remove(&tenant);
        } else {
            self.tenants.push_back(tenant);
        }
    }
}

/// Clients that stand in line once at most.
#[derive(Default)]
pub struct OnceInLine {
    pub lines: Lines,
    slots: HashSet<usize>,
}

impl OnceInLine {
    /// Puts a client at the end of its tenant's line, if it is in none.
    pub fn push(&mut self, tenant: Tenant, slot: usize) {
        if self.slots.insert(slot) {
            self.lines.push(tenant, slot);
        }
    }

    /// Whether a client is in line.
    pub fn has(&self, slot: usize) -> bool {
        self.slots.contains(&slot)
    }

    /// Notes that a client is gone.
    pub fn forget(&mut self, tenant: Tenant, slot: usize) {
        if self.slots.remove(&slot) {
            self.lines.forget(tenant, slot);
        }
    }

    /// Puts a client at the front of its tenant's line.
    pub fn put_back(&mut self, tenant: Tenant, slot: usize) {
        self.slots.insert(slot);
        self.lines.put_back(tenant, slot);
    }

    /// The next client of the tenant whose turn it is.
    pub fn next_of(&mut self, tenant: Tenant) -> Option<usize> {
        let slot = self.lines.next_of(tenant)?;
        self.slots.remove(&slot);
        Some(slot)
    }
}

/// One turn of a tenant whose clients are written to, or have something done.
pub struct Turn(Instant);

impl Turn {
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// One that has ended.
    pub fn over() -> Self {
        let now = Instant::now();
        Self(now.checked_sub(TURN).unwrap_or(now))
    }

    pub fn time(&self) -> Duration {
        self.0.elapsed()
    }

    pub fn is_over(&self) -> bool {
        self.time() >= TURN
    }
}

/// A look at the clock for all tenants' turns.
pub struct Lap(Instant);

impl Lap {
    pub fn new() -> Self {
        Self(Instant::now())
    }

    pub fn is_over(&self) -> bool {
        self.0.elapsed() >= LAP
    }
}

/// One turn of a tenant.
pub struct ReadTurn {
    began: Instant,
    frames: usize,
    /// How many it had at the last look at the clock.
    looked_at: usize,
    is_over: bool,
    /// What it has brought.
    pub received: Received,
}

impl ReadTurn {
    pub fn new() -> Self {
        Self { began: Instant::now(), frames: 0, looked_at: 0, is_over: false, received: Received::default() }
    }

    /// Counts a frame, or bytes that are read and dropped.
    pub fn frame(&mut self, bytes: usize) {
        self.add(1 + bytes / BYTES_PER_FRAME);
    }

    /// Counts a message of commands, which may be carried out here.
    pub fn command(&mut self) {
        self.add(COMMAND);
    }

    /// Counts a client that is removed.
    pub fn removal(&mut self) {
        self.add(REMOVAL);
    }

    fn add(&mut self, frames: usize) {
        self.frames += frames;
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

    pub fn time(&self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_so_do_their_clients() {
        let (one, two) = (Tenant(1), Tenant(2));
        let mut queue = Lines::default();
        for (tenant, slot) in [(one, 10), (one, 11), (two, 20), (one, 12)] {
            queue.push(tenant, slot);
        }
        assert_eq!((queue.begin_turn(), queue.next_of(one)), (Some(one), Some(10)));
        // It has more to be read, and another one comes.
        queue.push(one, 10);
        queue.push(one, 13);
        queue.end_turn(one, None);
        assert_eq!((queue.begin_turn(), queue.next_of(two), queue.next_of(two)), (Some(two), Some(20), None));
        queue.end_turn(two, None);
        assert_eq!(queue.begin_turn(), Some(one));
        assert_eq!([11, 12, 10, 13].map(Some), [(); 4].map(|()| queue.next_of(one)));
        queue.end_turn(one, None);
        assert!(queue.is_idle() && queue.begin_turn().is_none() && queue.lines.is_empty());
    }

    #[test]
    fn a_tenant_that_pauses_has_no_turn_even_if_another_client_comes() {
        let (start, one, two) = (Instant::now(), Tenant(1), Tenant(2));
        let (until, mut queue) = (start + TURN, Lines::default());
        queue.push(one, 10);
        queue.begin_turn();
        assert_eq!(queue.next_of(one), Some(10));
        queue.end_turn(one, Some(until));
        queue.push(one, 11);
        queue.push(two, 20);
        assert_eq!((queue.begin_turn(), queue.next_end()), (Some(two), Some(until)));
        queue.end_pauses(start);
        assert!(queue.is_idle());
        queue.end_pauses(until);
        assert_eq!((queue.begin_turn(), queue.next_of(one), queue.next_end()), (Some(one), Some(11), None));
        assert!(queue.has_paused(one) && !queue.has_paused(one) && !queue.has_paused(two));
        queue.put_back(one, 11);
        assert_eq!(queue.next_of(one), Some(11));
        queue.end_turn(one, Some(until));
        queue.end_pauses(until);
        assert!(queue.is_idle() && !queue.lines.contains_key(&one));
    }

    #[test]
    fn a_client_is_in_line_once() {
        let (tenant, mut line) = (Tenant(1), OnceInLine::default());
        for slot in [7, 7, 8] {
            line.push(tenant, slot);
        }
        line.forget(tenant, 8);
        line.push(tenant, 8);
        line.lines.begin_turn();
        assert_eq!([7, 8].map(Some), [(); 2].map(|()| line.next_of(tenant)));
        assert!(line.next_of(tenant).is_none() && !line.has(7) && line.lines.gone.is_empty());
    }

    #[test]
    fn the_next_client_of_a_slot_has_one_place() {
        let tenant = Tenant(1);
        let mut queue = Lines::default();
        for _ in 0..3 {
            queue.push(tenant, 7);
            queue.forget(tenant, 7);
        }
        queue.push(tenant, 7);
        queue.begin_turn();
        assert_eq!([queue.next_of(tenant), queue.next_of(tenant)], [Some(7), None]);
        assert!(queue.gone.is_empty());
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
