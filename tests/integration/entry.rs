//! How clients connect over each transport, and go on where they were.

pub mod handshakes;
mod herd;
mod leases;

mod centrifuge;
mod doors;
mod event_streams;
mod history;
mod origins;
mod proxies;
mod real_clients;
mod sse;
