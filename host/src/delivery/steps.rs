//! What is to be done with a client, put together for its shard.

use std::sync::Arc;

use crate::delivery::{Budget, Step};

/// Steps, and replies that stand behind them.
pub struct Steps {
    budget: Arc<Budget>,
    replies: Vec<u8>,
    steps: Vec<Step>,
}

impl Steps {
    /// `budget`: of which replies take their share.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), replies: Vec::new(), steps: Vec::new() }
    }

    /// Where whole frames go that the client is to be sent.
    pub fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    pub fn push(&mut self, step: Step) {
        self.send();
        self.steps.push(step);
    }

    /// All of them, for the shard.
    pub fn take(&mut self) -> Vec<Step> {
        self.send();
        std::mem::take(&mut self.steps)
    }

    /// Turns the replies into a step, if the tenant has room for them. If not, they cannot be left out silently.
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
