//! The tests' own tools do what they say: a test that stands on them shows nothing else.

mod chaos;
mod mariadb;
