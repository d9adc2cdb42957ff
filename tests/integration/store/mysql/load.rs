//! Faults while many append: of the connection to MySQL, of MySQL, of the host.

use std::time::Duration;

use rustix::process::Signal;
use support::{
    appends::Appends,
    chaos::{Chaos, Fault, Way, When},
    database::Server,
    on_each_server,
    relay::Relay,
    until,
};

use super::{outbox_empty, serve};

/// The load of the test: rows a second.
const PER_SECOND: u32 = 5000;
/// The rows of eight seconds.
const ROWS: u64 = 8 * PER_SECOND as u64;

/// Waits until the host drains again.
async fn drains(relay: &Relay) {
    let drained = relay.metric("edge_relay_records_drained_total", &[]).await;
    relay.metric_reaches("edge_relay_records_drained_total", &[], drained + 1.0).await;
}

/// Waits until one more drain than `before` has failed.
async fn fails(relay: &Relay, before: f64) {
    relay.metric_reaches("edge_relay_records_drain_failures_total", &[], before + 1.0).await;
}

/// Waits until this many more rows were given to the host.
async fn more(appends: &Appends, rows: u64) {
    let enough = appends.given() + rows;
    until(format!("{rows} more rows"), async || {
        let given = appends.given();
        if given > enough { Ok(()) } else { Err(format!("{given} of {enough}")) }
    })
    .await;
}

async fn failures(relay: &Relay) -> f64 {
    relay.metric("edge_relay_records_drain_failures_total", &[]).await
}

async fn the_line_is_cut_stalled_half_closed_in_a_commit_and_slow(server: Server) {
    let Some(database) = server.start().await else { return };
    let chaos = Chaos::start(database.address).await;
    let relay = serve(Appends::folder_to_mysql(), &database.url_at(chaos.address)).await;
    let mut appends = Appends::default();
    let load = appends.begin(&relay, Some(PER_SECOND));
    let mut rounds = 0;
    while appends.given() < ROWS || rounds == 0 {
        rounds += 1;
        drains(&relay).await;
        let before = failures(&relay).await;
        chaos.cut();
        fails(&relay, before).await;
        drains(&relay).await;
        // The stall may come at any point, in both directions. Appends go on for two seconds at their rate.
        chaos.stall();
        more(&appends, 2 * u64::from(PER_SECOND)).await;
        chaos.go_on();
        drains(&relay).await;
        // MySQL commits, and the host does not learn of it.
        for fault in [Fault::HalfClose(Way::Down), Fault::Cut] {
            let before = failures(&relay).await;
            let row = format!("{} ", appends.given() + 2000);
            chaos.arm(When::Answer(row.leak()), fault);
            chaos.struck().await;
            fails(&relay, before).await;
            drains(&relay).await;
        }
        chaos.latency(Duration::from_millis(500));
        drains(&relay).await;
        more(&appends, 2 * u64::from(PER_SECOND)).await;
        chaos.latency(Duration::ZERO);
    }
    appends.end(load).await;
    outbox_empty(&relay).await;
    assert_eq!(appends.refused, [""; 0]);
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0, "{}", relay.log());
    assert_eq!(appends.kept.len() as u64, appends.given());
    appends.are_in(&database).await;
}

async fn mysql_is_killed(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let relay = serve(Appends::folder_to_mysql(), &database.url()).await;
    let mut appends = Appends::default();
    let load = appends.begin(&relay, Some(PER_SECOND));
    for _ in 0..3 {
        drains(&relay).await;
        let before = failures(&relay).await;
        database.kill().await;
        fails(&relay, before).await;
        database.restart().await;
    }
    drains(&relay).await;
    appends.end(load).await;
    outbox_empty(&relay).await;
    assert_eq!(appends.kept.len() as u64, appends.given());
    appends.are_in(&database).await;
}

async fn the_host_is_killed(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut folder = Appends::folder_to_mysql();
    let mut appends = Appends::default();
    for _ in 0..4 {
        let relay = serve(folder, &database.url()).await;
        let load = appends.begin(&relay, None);
        drains(&relay).await;
        more(&appends, 2000).await;
        folder = relay.end_with(Signal::KILL).await;
        appends.end(load).await;
    }
    let relay = serve(folder, &database.url()).await;
    outbox_empty(&relay).await;
    assert!(appends.kept.len() > 8000 && appends.refused.is_empty(), "{:?}", appends.refused);
    appends.are_in(&database).await;
}

on_each_server!(the_line_is_cut_stalled_half_closed_in_a_commit_and_slow, mysql_is_killed, the_host_is_killed,);
