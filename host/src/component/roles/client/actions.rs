//! Carries out, in order, what a handler wants done after a message.

use std::time::Instant;

use tokio::sync::oneshot;
use wire::{Frame, centrifuge, frame, raw};

use crate::{
    channel::Start,
    component::{
        bindings::{
            client::exports::edge_relay::tenant::client_handler::{Action, Error},
            edge_relay::tenant::types::Publication,
        },
        imports::channels::{Leftover, SLICE, SLICE_BYTES, closing, frame_bytes, from_guest, publish_all, shortened},
        roles::client::{ClientSession, Guest, Handler, Meaning},
    },
    delivery::{BudgetShare, Follow, NotifyBy, Step, StepList},
    metrics::Blame,
    upstream::{SendError, SendOptions},
};

/// The most actions in one call. Each costs the host some microseconds.
const MAX_ACTIONS: usize = 10_000;

/// How the client is answered, which depends on what it has sent.
#[derive(Clone, Copy, Debug)]
pub enum ReplyMode {
    /// With messages, after a message of a plain WebSocket.
    Message,
    /// With one reply and with pushes, after a command of the Centrifuge protocol.
    Command { id: u32, by: ReplyKind },
}

/// The reply that a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    None,
    Rpc,
    Publish,
}

impl From<Meaning<'_>> for ReplyKind {
    fn from(meaning: Meaning<'_>) -> Self {
        match meaning {
            Meaning::Message => Self::None,
            Meaning::Rpc(_) => Self::Rpc,
            Meaning::Publish(_) => Self::Publish,
        }
    }
}

/// Carries out the actions that followed a message of this client.
///
/// `until`: when the call's time is over. What is left then is dropped.
pub async fn carry_out(
    handler: &Handler,
    session: &ClientSession,
    asked: ReplyMode,
    actions: Vec<Action>,
    until: Instant,
) {
    let guest = handler.guest();
    let extent = (actions.len(), actions.iter().map(size).sum());
    let leftover = Leftover::new(&guest, extent, until);
    leftover.work(carry_out_by(handler, session, asked, actions, &leftover)).await;
}

async fn carry_out_by(
    handler: &Handler,
    session: &ClientSession,
    asked: ReplyMode,
    actions: Vec<Action>,
    leftover: &Leftover,
) {
    let guest = handler.guest();
    if actions.len() > MAX_ACTIONS {
        guest.metrics.failed(Blame::GuestBroke, "actions");
        guest.log(|| tracing::warn!(actions = actions.len(), most = MAX_ACTIONS, "a handler's actions are cut off"));
    }
    let client_limits = &guest.tenant.client_limits;
    // They may wait for the shard, and so may those of many other clients.
    let Some(share) = client_limits.actions.take_alone(actions.iter().map(size).sum()) else {
        guest.metrics.failed(Blame::HostFailed, "backlog");
        // It counts as a refusal when the client is closed for it.
        return handler.take_steps(session.id, vec![Step::Overflow], None);
    };
    let steps = StepList::new(&client_limits.budget);
    let mut plan = Plan { handler, guest, session, leftover, asked, steps, share, publications: Vec::new() };
    let (mut slice, mut slice_bytes) = (0, 0);
    let left = actions.len().min(MAX_ACTIONS);
    for (nth, action) in actions.into_iter().take(MAX_ACTIONS).enumerate() {
        if slice == SLICE || slice_bytes >= SLICE_BYTES {
            (slice, slice_bytes) = (0, 0);
            if !leftover.pass().await {
                plan.cut_off(left - nth);
                break;
            }
        }
        (slice, slice_bytes) = (slice + 1, slice_bytes + size(&action));
        // A shard that is told of a publication takes in all that its channel has by then: what goes before one must be
        // done. The other way round the shard's queue keeps the order.
        if matches!(action, Action::Publish(_)) {
            plan.send_and_wait().await;
        } else {
            plan.publish().await;
        }
        // What becomes a step keeps its share until that is done. Replies have shares of their own, and publications
        // and frames for upstreams are charged where they go.
        if !matches!(action, Action::Subscribe(_) | Action::Unsubscribe(_) | Action::Disconnect(_)) {
            plan.share.shrink_to(plan.share.bytes().saturating_sub(size(&action)));
        }
        plan.add(action).await;
    }
    plan.publish().await;
    plan.answer();
    plan.send_steps();
}

/// Bytes of memory that an action takes.
fn size(action: &Action) -> usize {
    let more = match action {
        Action::Reply(frame) | Action::RpcResult(frame) => frame_bytes(frame),
        Action::Error(error) => error.message.len(),
        Action::Publish(publication) => {
            publication.channel.len() + publication.key.as_ref().map_or(0, String::len) + frame_bytes(&publication.data)
        }
        Action::Upstream(to) => to.upstream.len() + frame_bytes(&to.frame),
        Action::Subscribe(channel) | Action::Unsubscribe(channel) => channel.len(),
        Action::Disconnect(close) => close.reason.len(),
    };
    size_of::<Action>() + size_of::<Step>() + more
}

/// The actions that are yet to be carried out: either steps for the shard or publications.
struct Plan<'a> {
    handler: &'a Handler,
    guest: Guest,
    session: &'a ClientSession,
    leftover: &'a Leftover,
    /// The reply that is still due.
    asked: ReplyMode,
    steps: StepList,
    /// What the actions take of the tenant's budget.
    share: BudgetShare,
    publications: Vec<Publication>,
}

impl Plan<'_> {
    /// Notes that the call's time is over before the last actions.
    fn cut_off(&self, left: usize) {
        let guest = &self.guest;
        guest.metrics.failed(Blame::GuestBroke, "deadline");
        guest.tenant.metrics.limited(guest.role.call_limit(), 1);
        guest.log(|| tracing::warn!(left, "a handler's last actions are dropped: the call's time is over"));
    }

    async fn add(&mut self, action: Action) {
        let guest = &self.guest;
        match action {
            Action::Reply(frame) => self.message(&from_guest(frame)),
            Action::RpcResult(frame) => match self.asked {
                ReplyMode::Command { id, by: ReplyKind::Rpc } => {
                    self.asked = ReplyMode::Command { id, by: ReplyKind::None };
                    let frame = from_guest(frame);
                    self.say(|out| centrifuge::reply::rpc(id, &frame, out));
                }
                _ => self.message(&from_guest(frame)),
            },
            Action::Error(Error { code, message }) => {
                guest.metrics.failed(Blame::GuestSaidNo, "error");
                self.error(code, &message);
            }
            Action::Publish(publication) => self.publications.push(publication),
            Action::Upstream(to) => {
                let sent = match guest.version.upstream(&to.upstream) {
                    Some(upstream) => upstream.send(vec![from_guest(to.frame)], SendOptions::default()).await,
                    None => Err(SendError::Unknown),
                };
                if let Err(error) = sent {
                    guest.metrics.failed(Blame::HostFailed, "upstream");
                    let upstream = shortened(to.upstream);
                    guest.log(|| tracing::warn!(upstream, %error, "a handler's frame is not sent upstream"));
                }
            }
            Action::Subscribe(channel) => match guest.tenant.channels.follow(&channel).await {
                Ok(channel) => {
                    let follow = Follow { channel, start: Start::Now, position_lost: false, given_by_tenant: true };
                    self.steps.push(Step::Subscribe(follow, NotifyBy::Push));
                }
                Err(error) => {
                    guest.metrics.failed(Blame::HostFailed, "channel");
                    guest.log(|| {
                        tracing::warn!(field = error.field(), %error, "a handler's subscription is refused");
                    });
                }
            },
            Action::Unsubscribe(channel) => self.steps.push(Step::Unsubscribe(channel, NotifyBy::Push)),
            Action::Disconnect(close) => self.steps.push(closing(guest, close)),
        }
    }

    /// Adds a message to the client that answers nothing.
    fn message(&mut self, frame: &Frame) {
        match self.asked {
            ReplyMode::Message => raw::reply(frame, self.session.compression, self.steps.replies()),
            ReplyMode::Command { .. } => self.say(|out| centrifuge::reply::message_push(frame, out)),
        }
    }

    fn error(&mut self, code: u32, message: &str) {
        match self.asked {
            ReplyMode::Message => raw::error(code, message, self.steps.replies()),
            ReplyMode::Command { id, by } => {
                self.asked = ReplyMode::Command { id, by: ReplyKind::None };
                // An error that no command waits for is pushed.
                let id = if by == ReplyKind::None { 0 } else { id };
                self.say(|out| centrifuge::reply::error(id, code, message, out));
            }
        }
    }

    /// Answers a command that the handler has not answered.
    fn answer(&mut self) {
        match self.asked {
            ReplyMode::Command { id, by: ReplyKind::Publish } => {
                self.say(|out| centrifuge::reply::empty(id, "publish", out))
            }
            ReplyMode::Command { by: ReplyKind::Rpc, .. } => {
                self.guest.metrics.failed(Blame::GuestBroke, "unanswered");
                self.guest.log(|| tracing::warn!("a handler returned without the result of an RPC"));
                self.error(centrifuge::Error::Internal.code(), "the tenant's code gives no answer");
            }
            ReplyMode::Command { by: ReplyKind::None, .. } | ReplyMode::Message => {}
        }
    }

    /// Adds a reply of the Centrifuge protocol.
    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut reply = Vec::new();
        write(&mut reply);
        wire::encode(self.session.compression, frame::TEXT, &reply, self.steps.replies());
    }

    /// Sends the steps to the client's shard.
    fn send_steps(&mut self) {
        let steps = self.steps.take();
        if !steps.is_empty() {
            let share = self.share.split(steps.iter().map(Step::size).sum());
            self.handler.take_steps(self.session.id, steps, Some(share));
        }
    }

    /// Sends the steps to the client's shard and waits until they are done, or the client is gone.
    async fn send_and_wait(&mut self) {
        let mut steps = self.steps.take();
        if !steps.is_empty() {
            let (done, waits) = oneshot::channel();
            steps.push(Step::ReportDone(done));
            let share = self.share.split(steps.iter().map(Step::size).sum());
            self.handler.take_steps(self.session.id, steps, Some(share));
            // An error means that the client is gone.
            let _ = waits.await;
        }
    }

    async fn publish(&mut self) {
        if !self.publications.is_empty() {
            publish_all(&self.guest, std::mem::take(&mut self.publications), self.leftover).await;
        }
    }
}
