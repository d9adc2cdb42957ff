//! The whole program, on real sockets: what it does for partners, clients, tenants and operators.
//!
//! Every test runs the program itself, on port 0, against a partner and clients of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/lib.rs"]
mod support;

mod house;
mod real_input;

mod event_streams;
mod faults;
mod on_demand;
mod tls;
mod upstream;

mod broken_filter;
mod filter;
mod imports;
mod jobs;
mod languages;
mod leases;
mod limits;
mod market;

mod api;
mod api_bodies;
mod api_faults;
mod centrifuge;
mod clients;
mod foreign;
mod grants;
mod handlers;
mod handshakes;
mod herd;
mod history;
mod real_clients;
mod slow_clients;
mod snapshots;
mod sse;
mod store;

mod admin;
mod bad_config;
mod code;
mod commands;
mod components;
mod compression;
mod guide;
mod page;
mod readme;
mod records;
mod shutdown;
mod swap;
mod tenants;

mod chaos;
mod mariadb;
