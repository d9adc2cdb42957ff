//! What the host gives to guests: one module for each capability.

pub mod channels;
pub mod keyvalue;
pub mod outbound;
pub mod records;
pub mod upstreams;
