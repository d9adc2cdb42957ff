//! What the documents say, done as they say it.

mod guide;
mod house;
pub mod readme;
