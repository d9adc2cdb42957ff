//! What the tests stand on: the real program as a child process, and fakes of everything around it.
//!
//! In the order data flows: recorded [`feeds`] or a scripted [`partner`], then [`chaos`], which disturbs the
//! connection, a [`proxy`], and the names of [`hosts`]. Next comes the [`relay`] with its [`tenant`]s and their
//! components: [`guests`], those in other [`languages`], [`bombs`], [`compile_bombs`] and [`appended`]. Components
//! send requests to an [`origin`]. A proxy may stand in [`front`] of the relay. The clients are a [`client`], a
//! [`crowd`], a [`browser`], other people's programs ([`script`], [`javascript`]), or requests to the API ([`http`]).
//! Tests of records use [`appends`], [`database`], and a [`disk`] to fill. A [`machine`] may lack what others have.
//! [`place`] finds the program and the folders.
//! A test that cannot run says so with [`skip`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fmt::Display,
    net::Ipv4Addr,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

pub mod appended;
pub mod appends;
// The module is here, and found by its path, because the benchmark uses the file too.
#[path = "../../hostile/bombs.rs"]
pub mod bombs;
pub mod browser;
pub mod certificates;
pub mod chaos;
pub mod client;
pub mod clock;
pub mod compile_bombs;
pub mod crowd;
pub mod database;
pub mod disk;
pub mod feeds;
pub mod front;
pub mod guests;
pub mod hosts;
pub mod http;
pub mod javascript;
pub mod languages;
pub mod machine;
pub mod origin;
pub mod partner;
pub mod place;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod relay;
pub mod script;
pub mod skip;
pub mod tenant;

/// How long anything may take that must happen. It is far more than needed, even on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Time between two looks at what gives no event of its own: a metric, a log, a child's end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A loopback address for one server alone, so that no other server takes its port while it does not listen.
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// Waits for something that must happen.
pub async fn within<T>(what: impl Display, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, event).await {
        Ok(value) => value,
        Err(_) => panic!("not within {} s: {what}", DEADLINE.as_secs()),
    }
}

/// Looks again and again until there is something. `last` says what was there instead.
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
