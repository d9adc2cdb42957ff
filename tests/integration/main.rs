//! The whole program on real sockets: what it does for partners, clients, tenants and operators.
//!
//! Every test runs the program itself, on port 0, with a partner and clients of its own. The modules are those of the
//! program, in the order in which data flows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod upstream;

mod component;

mod delivery;
mod entry;

mod api;

mod store;

mod tenants;

mod admin;
mod command;

mod docs;

mod fixtures;
