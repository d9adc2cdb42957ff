//! Partners: the connection to one, all ways to lose it, and what they send.

mod connection;
mod faults;
mod on_demand;
mod real_input;
mod tls;
