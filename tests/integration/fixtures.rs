//! The tests' own tools do what they say. A test that uses them would show nothing if they did not.

mod chaos;
mod database;
