//! What other threads ask of a shard: to take a client in, and to carry out steps with one. What a tenant asks is done
//! in the order in which it came, and tenants take turns.

use std::{sync::Arc, vec};

use slab::Slab;

use crate::delivery::{
    BudgetShare, ClientId, ClientLimits, Step,
    shard::{
        KEPT_ROOM, Newcomer, Shard,
        turns::{Lap, Lines, Tenant, Turn},
    },
};

/// Something to do for a tenant.
pub(super) enum Task {
    /// A client whose handshake is done.
    Client(Box<Newcomer>),
    Steps(Steps),
}

/// Steps with one client.
pub(super) struct Steps {
    pub client: ClientId,
    pub client_limits: Arc<ClientLimits>,
    pub steps: vec::IntoIter<Step>,
    /// Held until they are done.
    pub _share: Option<BudgetShare>,
}

/// What waits for its turn.
#[derive(Default)]
pub(super) struct ToDo {
    lines: Lines,
    tasks: Slab<Task>,
}

impl ToDo {
    pub fn is_empty(&self) -> bool {
        self.lines.is_idle()
    }

    /// Gives back the room that a herd's tasks have taken.
    pub fn tidy(&mut self) {
        if self.tasks.is_empty() && self.tasks.capacity() > KEPT_ROOM {
            self.tasks = Slab::new();
        }
    }
}

impl Task {
    fn client_limits(&self) -> &Arc<ClientLimits> {
        match self {
            Self::Client(newcomer) => newcomer.accepted.client.client_limits(),
            Self::Steps(steps) => &steps.client_limits,
        }
    }
}

impl Shard {
    /// Does something at once, while `turn` lasts and nothing else waits. The rest gets in line. What is done at once is
    /// too little to be worth a look at the clock, so no tenant's processor time has it.
    pub(super) fn take_task(&mut self, task: Task, turn: &Turn) {
        let begins = self.to_do.is_empty() && !turn.is_over();
        let rest = if begins { self.work_on(task, turn) } else { Some(task) };
        if let Some(task) = rest {
            let tenant = Tenant::of(task.client_limits());
            let nth = self.to_do.tasks.insert(task);
            self.to_do.lines.push(tenant, nth);
        }
    }

    /// Does what waits: each tenant has its turn.
    pub(super) fn task_turns(&mut self) {
        let lap = Lap::new();
        for _ in 0..self.to_do.lines.tenants() {
            let Some(tenant) = self.to_do.lines.begin_turn() else { return };
            let turn = Turn::new();
            while !turn.is_over()
                && let Some(nth) = self.to_do.lines.next_of(tenant)
            {
                let Some(task) = self.to_do.tasks.try_remove(nth) else { continue };
                let usage = Arc::clone(&task.client_limits().usage);
                let began = turn.time();
                if let Some(rest) = self.work_on(task, &turn) {
                    let nth = self.to_do.tasks.insert(rest);
                    self.to_do.lines.put_back(tenant, nth);
                }
                usage.worked(turn.time().saturating_sub(began));
            }
            self.to_do.lines.end_turn(tenant, None);
            if lap.is_over() {
                return;
            }
        }
    }

    /// Does something while `turn` lasts, and returns the rest of it.
    fn work_on(&mut self, task: Task, turn: &Turn) -> Option<Task> {
        match task {
            Task::Client(newcomer) => {
                self.adopt(*newcomer);
                None
            }
            Task::Steps(mut steps) => {
                while self.take_step(&mut steps) {
                    if turn.is_over() {
                        return Some(Task::Steps(steps));
                    }
                }
                None
            }
        }
    }
}
