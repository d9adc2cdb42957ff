//! Partners: the connection to one, all ways to lose it, and what they send.

mod close;
mod connection;
mod credentials;
mod data_timeout;
mod faults;
mod gaps;
mod handshake;
mod instances;
mod limits;
mod names;
mod on_demand;
mod proxies;
mod real_input;
mod refusals;
mod sending;
mod slow_filter;
mod states;
mod tls;
