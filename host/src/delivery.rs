//! Delivery: from a channel's chunks to the bytes on clients' sockets.
//!
//! A client is a row in the table of a [`Shards`] thread: a socket, a cursor on each channel it follows, no task, no timer
//! and no buffer of its own while it is idle. Shards know channels and what stands on the wire. They know nothing of
//! tenants, components or handlers: whom a client talks to is a [`Recipient`], what its tenant allows a [`ClientLimits`].

pub mod address_limit;
mod budget;
mod connected;
mod end;
mod id;
mod inbox;
mod limits;
mod mailbox;
mod queue;
pub mod shard;
pub mod sockopt;
mod steps;

pub use address_limit::{ClientSource, ClientSources};
pub use budget::{Budget, BudgetShare};
pub use connected::{Connected, Pings, Recipient};
pub use end::End;
pub use id::ClientId;
pub use inbox::{Inbox, InboxEvent, Over};
pub use limits::ClientLimits;
pub use queue::{Follow, NotifyBy, Step};
pub use shard::{Shards, Timing};
pub use steps::Steps;
