//! A filter that takes commands, with the partner that gives them.

use super::{
    client::Client,
    partner::{Partner, Peer},
    relay::Relay,
};

/// A tenant whose filter takes commands from its partner, and a client that gets the answers.
pub struct Probe {
    pub peer: Peer,
    answers: Client,
}

impl Probe {
    pub async fn new(relay: &Relay, partner: &mut Partner, tenant: &str) -> Self {
        let answers = relay.client(&format!("/{tenant}?channel=answers")).await;
        Self { peer: partner.accept().await, answers }
    }

    pub async fn ask(&mut self, command: &str) -> String {
        self.peer.text(command).await;
        self.answer().await
    }

    /// Returns the answer to a command that was sent without waiting for it.
    pub async fn answer(&mut self) -> String {
        self.answers.text().await
    }

    pub async fn check(&mut self, steps: &[(&str, &str)]) {
        for (command, answer) in steps {
            assert_eq!(self.ask(command).await, *answer, "{command}");
        }
    }
}
