//! Tenants on one host: kept apart, within their limits, and changed while they run.

mod company;
mod isolation;
mod limits;
mod swap;
