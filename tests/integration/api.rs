//! The tenants' HTTP APIs.

mod bodies;
mod faults;
mod requests;
