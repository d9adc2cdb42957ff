//! Trouble of every kind at random, while many append: no acknowledged row is lost, and none is there twice.
//!
//! `RECORDS_TROUBLE_SECONDS` is how long it lasts, on both servers together; `RECORDS_TROUBLE_SEED` repeats the choices
//! of a run, which prints its seed.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use support::{
    appends::Appends,
    chaos::{Chaos, Way},
    database::{Database, Server},
    on_each_server,
};

use super::{outbox_empty, serve};

const SECONDS: u64 = 30;
/// Rows a second.
const LOAD: u32 = 2000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

async fn acknowledged_rows_survive_trouble_of_every_kind(server: Server) {
    let Some((one, other)) = server.start().await.zip(server.start().await) else { return };
    let seed = variable("RECORDS_TROUBLE_SEED").unwrap_or_else(rand::random);
    let seconds = variable("RECORDS_TROUBLE_SECONDS").unwrap_or(SECONDS) / 2;
    eprintln!("RECORDS_TROUBLE_SEED={seed} on {server:?}, {seconds} s");
    let mut random = StdRng::seed_from_u64(seed);
    // The first of these is the primary.
    let mut databases = [one, other];
    let mut chaos = Chaos::start(databases[0].address).await;
    let url = databases[0].url_at(chaos.address);
    let mut relay = serve(Appends::folder_to_mysql(), &url).await;
    let mut appends = Appends::default();
    let began = Instant::now();
    let mut load = appends.begin(&relay, Some(LOAD));
    let mut kinds = [0; 8];
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
        let kind = random.random_range(0..kinds.len());
        kinds[kind] += 1;
        let pause = Duration::from_millis(random.random_range(0..700));
        match kind {
            0 => chaos.cut(),
            1 => chaos.half_close(if random.random() { Way::Up } else { Way::Down }),
            2 => {
                chaos.stall();
                tokio::time::sleep(pause).await;
                if random.random() {
                    chaos.cut();
                }
                chaos.go_on();
            }
            3 => {
                chaos.refuse().await;
                chaos.cut();
                tokio::time::sleep(pause).await;
                chaos.accept().await;
            }
            4 => {
                databases[0].read_only(true).await;
                tokio::time::sleep(pause).await;
                databases[0].read_only(false).await;
            }
            5 => {
                databases[0].kill().await;
                tokio::time::sleep(pause).await;
                databases[0].restart().await;
            }
            6 => {
                let folder = relay.end_with(if random.random() { Signal::KILL } else { Signal::TERM }).await;
                appends.end(load).await;
                relay = serve(folder, &url).await;
                load = appends.begin(&relay, Some(LOAD));
            }
            _ => {
                // Another server becomes the primary. The one before stays up, with its connections.
                databases[0].read_only(true).await;
                databases.swap(0, 1);
                databases[0].read_only(false).await;
                chaos.lead_to(databases[0].address);
            }
        }
    }
    appends.end(load).await;
    outbox_empty(&relay).await;
    assert!(appends.refused.is_empty(), "{:?}", appends.refused);
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0, "{}", relay.log());
    let all: Vec<&Database> = databases.iter().collect();
    let twice = appends.are_in_all(&all).await;
    // What one could not tell of when the other took its place: one batch each time.
    assert!(twice <= kinds[7] * 2000, "{twice} rows are on both servers");
    assert!(appends.kept.len() > 1000, "{} rows", appends.kept.len());
    eprintln!("{} rows were acknowledged on {server:?}; trouble by kind: {kinds:?}", appends.kept.len());
}

on_each_server!(acknowledged_rows_survive_trouble_of_every_kind);
