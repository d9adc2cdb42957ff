//! Partners: the connection to one, all ways to lose it, and what they send.

mod connection;
mod credentials;
mod faults;
mod handshake;
mod names;
mod on_demand;
mod proxies;
mod real_input;
mod refusals;
mod tls;
