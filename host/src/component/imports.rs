//! The capabilities that the host gives to guests: one module for each.

pub mod channels;
pub mod keyvalue;
pub mod outbound;
pub mod records;
pub mod upstreams;
