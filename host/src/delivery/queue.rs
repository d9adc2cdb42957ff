//! How the other threads reach a shard.

use std::{io, sync::Arc, time::Instant};

use mio::{Registry, Token, Waker};
use tokio::sync::oneshot;

use crate::{
    channel::{Channel, Reader, Start},
    delivery::{BudgetShare, ClientId, ClientLimits, end::End, mailbox::Mailbox, shard::Newcomer},
};

/// What a shard is told.
pub enum ShardCommand {
    /// A client whose handshake is done.
    Client(Box<Newcomer>),
    /// The channel of this view has new chunks. Which ones is read from the channel itself, so that however far a
    /// shard is behind, what waits for it is bounded by the channel's log.
    Fresh(usize),
    /// What a tenant wants done with one of its clients, if that is still there.
    Act { client: ClientId, client_limits: Arc<ClientLimits>, steps: Vec<Step> },
    /// A tenant is gone: its clients are closed.
    Gone(Arc<ClientLimits>),
    /// Close every client with 1001 and end.
    Shutdown,
}

/// A part of what is to be done with a client.
pub enum Step {
    /// Bytes of whole frames, with their share of the tenant's budget.
    Send(Vec<u8>, BudgetShare),
    /// There were replies, and no room for them in the tenant's budget.
    Overflow,
    /// A client of the Centrifuge protocol is let in, which answers its command `id`.
    Connected {
        id: u32,
        expires_seconds: Option<u32>,
        given: Vec<Follow>,
    },
    Subscribe(Follow, NotifyBy),
    Unsubscribe(String, NotifyBy),
    /// Its connection ends then, or by itself no more.
    Expires(Option<Instant>),
    Close(End),
    /// Tells, sent or dropped, that the steps before it are done or never will be.
    Tell(oneshot::Sender<()>),
}

/// A channel that a client is to follow.
pub struct Follow {
    pub channel: Arc<Channel>,
    pub start: Start,
    /// It wants to go on after a position that it cannot.
    pub lost: bool,
    /// It has not asked for it: the tenant's code gives it.
    pub given: bool,
}

/// How a client of the Centrifuge protocol is told of its subscriptions; others are not.
#[derive(Clone, Copy)]
pub enum NotifyBy {
    /// By the answer to its command.
    Reply(u32),
    Push,
}

/// A shard's queue. Its length is bounded by the clients that handshakes let in, by one `Fresh` a view, and by what
/// guests do in their calls: the bytes of that have shares of their tenants' budgets.
pub struct Queue {
    commands: Mailbox<ShardCommand>,
    waker: Waker,
}

impl Queue {
    pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self { commands: Mailbox::new(), waker: Waker::new(registry, token)? })
    }

    /// Adds a command; wakes the shard only if it had none waiting. Once that has ended, commands are dropped.
    pub fn push(&self, command: ShardCommand) {
        if self.commands.push(command)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a shard cannot be woken");
        }
    }

    /// Swaps all waiting commands for an empty vector.
    pub fn take(&self, into: &mut Vec<ShardCommand>) {
        self.commands.take(into);
    }

    /// Drops all commands, now and from now on.
    pub fn close(&self) {
        // Not under the lock: clients among them have an end of their own.
        drop(self.commands.close());
    }
}

impl Reader for Arc<Queue> {
    fn fresh(&self, token: usize) {
        self.push(ShardCommand::Fresh(token));
    }
}
