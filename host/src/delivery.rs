//! Delivery: from a channel's chunks to the bytes on clients' sockets.
//!
//! A shard is a thread with a table of clients ([`Shards`]). A client is one row of that table: a socket and a cursor
//! on each channel that it follows. While it is idle it has no task, no timer and no buffer of its own. Shards know
//! channels and the wire formats. They know nothing of tenants, components or handlers: a client's messages go to a
//! [`Recipient`], and its tenant's limits are a [`ClientLimits`].

pub mod address_limit;
mod budget;
mod connected;
mod encoder;
mod end;
mod id;
mod inbox;
mod limits;
mod mailbox;
mod queue;
pub mod shard;
pub mod sockopt;
mod step_list;

pub use address_limit::{ClientSource, ClientSources};
pub use budget::{Budget, BudgetShare};
pub use connected::{Connected, LaterRecipient, Pings, Recipient};
pub use end::End;
pub use id::ClientId;
pub use inbox::{Inbox, InboxEvent, LimitReached};
pub use limits::ClientLimits;
pub use mailbox::Mailbox;
pub use queue::{Follow, NotifyBy, Step};
pub use shard::{Shards, Timing};
pub use step_list::StepList;
