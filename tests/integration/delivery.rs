//! What clients get: every message in its order, whatever they do and however slowly they read.

mod clients;
mod compression;
mod slow_clients;
mod snapshots;
