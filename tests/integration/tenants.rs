//! Tenants on one host: kept apart, within their limits, and changed while they run.

mod isolation;
mod limits;
mod swap;
