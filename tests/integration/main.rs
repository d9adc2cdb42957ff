//! The whole program, on real sockets: what it does for partners, clients, tenants and operators.
//!
//! Every test runs the program itself, on port 0, against a partner and clients of its own. The folders are those of
//! the program, in the order of the data.
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
