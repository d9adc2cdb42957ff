//! Tenants on one host: apart from each other, within their limits, changed while they run.

mod isolation;
mod limits;
mod swap;
