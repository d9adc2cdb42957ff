//! What a handler wants done after a message, carried out in its order.

use tokio::sync::oneshot;

use super::{
    super::{
        bindings::{
            client::exports::edge_relay::tenant::client_handler::{Action, Error},
            edge_relay::tenant::types::Publication,
        },
        channels::{closing, from_guest, publish_all},
    },
    Handler,
};
use crate::{
    client::{ClientId, Step, raw},
    metrics::Blame,
    upstream::SendError,
};

/// Actions of one call; each costs the host some microseconds.
const MAX_ACTIONS: usize = 10_000;

/// Carries out the actions that followed a message of this client.
pub async fn carry_out(handler: &Handler, client: ClientId, actions: Vec<Action>) {
    let guest = handler.guest();
    if actions.len() > MAX_ACTIONS {
        guest.metrics.failed(Blame::GuestBroke, "actions");
        tracing::warn!(tenant.name = %guest.tenant.name, actions = actions.len(), most = MAX_ACTIONS, "a handler's actions cut off");
    }
    let mut plan = Plan { handler, client, replies: Vec::new(), steps: Vec::new(), publications: Vec::new() };
    for action in actions.into_iter().take(MAX_ACTIONS) {
        // A shard that is told of a publication takes in all that its channel has by then: what goes before one must be
        // done. The other way round the shard's queue keeps the order.
        if matches!(action, Action::Publish(_)) {
            plan.done().await;
        } else {
            plan.publish().await;
        }
        plan.add(action);
    }
    plan.publish().await;
    plan.act();
}

/// Actions that are yet to be carried out: either steps for the shard or publications.
struct Plan<'a> {
    handler: &'a Handler,
    client: ClientId,
    /// Encoded, behind all of `steps`.
    replies: Vec<u8>,
    steps: Vec<Step>,
    publications: Vec<Publication>,
}

impl Plan<'_> {
    fn add(&mut self, action: Action) {
        let guest = self.handler.guest();
        match action {
            Action::Reply(frame) | Action::RpcResult(frame) => {
                raw::reply(&from_guest(frame), &mut self.replies);
            }
            Action::Error(Error { code, message }) => {
                guest.metrics.failed(Blame::GuestSaidNo, "error");
                raw::error(code, &message, &mut self.replies);
            }
            Action::Publish(publication) => self.publications.push(publication),
            Action::Upstream(to) => {
                let upstream = guest.tenant.upstream(&to.upstream);
                let sent =
                    upstream.map_or(Err(SendError::Unknown), |upstream| upstream.send(vec![from_guest(to.frame)]));
                if let Err(error) = sent {
                    guest.metrics.failed(Blame::HostFailed, "upstream");
                    tracing::warn!(tenant.name = %guest.tenant.name, %error, "a handler's frame is not sent upstream");
                }
            }
            Action::Subscribe(channel) => match guest.tenant.channels.subscribe(&channel) {
                Ok(channel) => self.step(Step::Subscribe(channel)),
                Err(error) => {
                    guest.metrics.failed(Blame::HostFailed, "channel");
                    tracing::warn!(tenant.name = %guest.tenant.name, %error, "a handler's subscription is refused");
                }
            },
            Action::Unsubscribe(channel) => self.step(Step::Unsubscribe(channel)),
            Action::Disconnect(close) => self.step(closing(close)),
        }
    }

    fn step(&mut self, step: Step) {
        self.send();
        self.steps.push(step);
    }

    /// Turns the replies into a step, if the tenant has room for them. If not, they cannot be left out silently.
    fn send(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        let replies = std::mem::take(&mut self.replies);
        self.steps.push(match self.handler.guest().tenant.terms.budget.take(replies.len()) {
            Some(share) => Step::Send(replies, share),
            None => Step::Overflow,
        });
    }

    /// Hands the steps to the client's shard.
    fn act(&mut self) {
        self.send();
        if !self.steps.is_empty() {
            let steps = std::mem::take(&mut self.steps);
            self.handler.act(self.client, steps);
        }
    }

    /// Hands the steps to the client's shard and waits until they are done, or the client is gone.
    async fn done(&mut self) {
        self.send();
        if !self.steps.is_empty() {
            let (done, waits) = oneshot::channel();
            self.steps.push(Step::Tell(done));
            self.act();
            // An error: they never will be.
            let _ = waits.await;
        }
    }

    async fn publish(&mut self) {
        if !self.publications.is_empty() {
            publish_all(self.handler.guest(), std::mem::take(&mut self.publications)).await;
        }
    }
}
