//! The tenants' code: how it is compiled and kept, each of its roles, what it may reach, and its languages.

mod code;
mod machines;

mod broken_filter;
mod filter;
mod handlers;
mod jobs;

mod grants;
mod imports;

mod foreign;
mod languages;
mod market;
mod shapes;
