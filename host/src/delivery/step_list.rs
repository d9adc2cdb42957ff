//! Collects what is to be done with a client, for its shard.

use std::sync::Arc;

use crate::delivery::{Budget, Step};

/// Steps, and the replies that come after them.
pub struct StepList {
    budget: Arc<Budget>,
    replies: Vec<u8>,
    steps: Vec<Step>,
}

impl StepList {
    /// Replies take shares of `budget`.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), replies: Vec::new(), steps: Vec::new() }
    }

    /// Where to write whole frames that the client is to be sent.
    pub fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    pub fn push(&mut self, step: Step) {
        self.send();
        self.steps.push(step);
    }

    /// Takes all steps, for the shard.
    pub fn take(&mut self) -> Vec<Step> {
        self.send();
        std::mem::take(&mut self.steps)
    }

    /// Turns the replies into a step, if the tenant's budget has room for them. If it has not, the step says so:
    /// replies must not be left out silently.
    fn send(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        let replies = std::mem::take(&mut self.replies);
        self.steps.push(match self.budget.take(replies.len()) {
            Some(share) => Step::Send(replies, share),
            None => Step::Overflow,
        });
    }
}
