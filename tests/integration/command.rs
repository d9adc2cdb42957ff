//! The command line: what each command does, prints and refuses, and how it ends.

mod bad_config;
mod component;
mod demo_page;
mod listeners;
mod shutdown;
mod usage;
