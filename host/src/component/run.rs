//! Runs instances: makes them within limits, calls them with a deadline, drops them when they break.

pub mod call;
pub mod host;
pub mod instance;
pub mod output;
pub mod pool;
pub mod runtime;
pub mod swap;
pub mod system;
pub mod ticker;
pub mod warm;
