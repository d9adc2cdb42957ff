//! How other threads reach a shard.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Registry, Token, Waker};
use tokio::sync::oneshot;

use crate::{
    channel::{Channel, Reader, Start},
    delivery::{BudgetShare, ClientId, ClientLimits, encoder::Ordered, end::End, mailbox::Mailbox, shard::Newcomer},
};

/// What other threads ask of a shard.
pub enum ShardCommand {
    /// A client whose handshake is done.
    Client(Box<Newcomer>),
    /// The channel of this view has new chunks. The shard reads which ones from the channel itself. So however far a
    /// shard is behind, the channel's log bounds what waits for it.
    NewChunks(usize),
    /// This is made, for clients of this view.
    Encoded(usize, Ordered),
    /// What a tenant does with one of its clients. Ignored if the client is gone.
    TakeSteps {
        client: ClientId,
        client_limits: Arc<ClientLimits>,
        steps: Vec<Step>,
        /// Their share of the tenant's budget. `None`: they are few, or the one who sends them waits for them.
        share: Option<BudgetShare>,
    },
    /// A tenant is gone: close its clients.
    TenantGone(Arc<ClientLimits>),
    /// Close every client with 1001 and end.
    /// The clients are closed this much apart, and all is over at the end.
    Shutdown { end: Instant, apart: Duration },
}

/// One thing to do with a client.
pub enum Step {
    /// Bytes of whole frames, with their share of the tenant's budget.
    Send(Vec<u8>, BudgetShare),
    /// There were replies, but the tenant's budget had no room for them.
    Overflow,
    /// Lets in a client of the Centrifuge protocol, and answers its `connect` command, which has this `id`.
    Connected {
        id: u32,
        expires_seconds: Option<u32>,
        given: Vec<Follow>,
    },
    Subscribe(Follow, NotifyBy),
    Unsubscribe(String, NotifyBy),
    /// Sets when the connection ends by itself. `None`: it no longer does.
    Expires(Option<Instant>),
    Close(End),
    /// Tells the receiver that the steps before this one are done. If it is dropped unsent, they never will be.
    ReportDone(oneshot::Sender<()>),
}

impl Step {
    /// Bytes of memory that it takes while it waits, besides those of replies, which hold shares of their own.
    pub fn size(&self) -> usize {
        let more = match self {
            Self::Unsubscribe(channel, _) => channel.len(),
            Self::Close(End::Handler { text, .. }) => text.len(),
            Self::Connected { given, .. } => given.len() * size_of::<Follow>(),
            _ => 0,
        };
        size_of::<Self>() + more
    }
}

/// A channel that a client is to follow.
pub struct Follow {
    pub channel: Arc<Channel>,
    pub start: Start,
    /// The client asked to go on after a position, and cannot.
    pub position_lost: bool,
    /// The tenant's code gives the channel; the client has not asked for it.
    pub given_by_tenant: bool,
}

/// How a client of the Centrifuge protocol is told of a subscription. Other clients are not told.
#[derive(Clone, Copy)]
pub enum NotifyBy {
    /// By the reply to its command, which has this id.
    Reply(u32),
    Push,
}

/// A shard's queue. Four things bound its length: how many clients are in their handshake, one `NewChunks` for each
/// view, what is made for clients here, and what guests do in their calls. Bytes that guests send, and what clients ask for,
/// hold shares of their tenants' budgets. The shard keeps what it has taken until its tenant has a turn.
pub struct Queue {
    commands: Mailbox<ShardCommand>,
    waker: Waker,
}

impl Queue {
    pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self { commands: Mailbox::new(), waker: Waker::new(registry, token)? })
    }

    /// Adds a command, and wakes the shard if none was waiting. A shard that has ended drops commands.
    pub fn push(&self, command: ShardCommand) {
        if self.commands.push(command)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a shard cannot be woken");
        }
    }

    /// Takes all waiting commands, and leaves the empty vector `into` in their place.
    pub fn take(&self, into: &mut Vec<ShardCommand>) {
        self.commands.take(into);
    }

    /// Drops all commands that wait, and all that come later.
    pub fn close(&self) {
        // Dropped outside of the lock: there may be clients among them, and dropping a client runs code of its own.
        drop(self.commands.close());
    }
}

impl Reader for Arc<Queue> {
    fn new_chunks(&self, token: usize) {
        self.push(ShardCommand::NewChunks(token));
    }
}
