//! What the tests stand on: the real program as a child process, and fakes of all that is around it.
//!
//! In the order data flows: recorded [`feeds`] or a scripted [`partner`], [`chaos`] between, the [`relay`] with its
//! [`tenant`]s and their [`guests`], in other [`languages`] too, [`bombs`] and [`compile_bombs`], and [`client`]s, a
//! [`crowd`] of them, or a [`browser`], or others' clients ([`script`], [`javascript`]), or requests to its API
//! ([`http`]), and an [`origin`] that components ask; for records [`appends`], [`mariadb`], and a [`disk`] to fill. The
//! program and the folders are in [`place`]; a test that cannot run says so by [`skip`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fmt::Display,
    net::Ipv4Addr,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

pub mod appends;
// Here and not by its own name: the benchmark takes the file too.
#[path = "../../hostile/bombs.rs"]
pub mod bombs;
pub mod browser;
pub mod certificates;
pub mod chaos;
pub mod client;
pub mod compile_bombs;
pub mod crowd;
pub mod disk;
pub mod feeds;
pub mod guests;
pub mod http;
pub mod javascript;
pub mod languages;
pub mod mariadb;
pub mod origin;
pub mod partner;
pub mod place;
pub mod probe;
pub mod process;
pub mod raw;
pub mod relay;
pub mod script;
pub mod skip;
pub mod tenant;

/// For anything that must happen: far more than it takes, on a loaded machine too.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Time between two checks of what gives no event of its own: a metric, a log, a child's end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A loopback address of its own for each server, so that nobody takes its port while it does not listen.
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// Waits for something that must happen.
pub async fn within<T>(what: impl Display, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, event).await {
        Ok(value) => value,
        Err(_) => panic!("within {} s there was not: {what}", DEADLINE.as_secs()),
    }
}

/// Looks again and again until there is something; `last` says what there was instead.
pub async fn until<T>(what: impl Display, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(last) if started.elapsed() > DEADLINE => panic!("{what}: not within the deadline; last seen: {last}"),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
