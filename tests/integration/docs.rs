//! What the documents say, carried out as they say it.

mod guide;
mod house;
pub mod readme;
