//! What clients get: every message in order, whatever they do and however slowly they read.

mod clients;
mod compression;
mod slow_clients;
mod snapshots;
