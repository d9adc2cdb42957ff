//! Faults in any order: a row that was acknowledged is in MySQL exactly once.

use std::{cell::RefCell, time::Duration};

use proptest::{
    prelude::{Just, Strategy, prop_oneof},
    test_runner::{Config, TestRunner},
};
use rustix::process::Signal;
use support::{
    appends::Appends,
    chaos::{Chaos, Fault, Way, When},
    database::{Database, Server},
};

use super::{outbox_empty, serve};

/// How often the test runs. `PROPTEST_CASES` sets another number.
const CASES: u32 = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Appends rows, and waits for the answer.
    Append(u64),
    /// Waits until all rows are in MySQL, if MySQL runs.
    Drain,
    /// Appends rows. Either the statement with them is lost before MySQL gets it, or its answer is lost after the
    /// commit.
    Lose {
        rows: u64,
        answer: bool,
    },
    /// Appends as fast as possible, kills the host some milliseconds later, and starts it again.
    CrashAppending(u64),
    /// Stops the host or kills it (`true`), and starts it again.
    Restart(bool),
    /// Stops MySQL or kills it (`true`).
    LoseMySql(bool),
    StartMySql,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..60_u64).prop_map(Step::Append),
        2 => Just(Step::Drain),
        3 => (1..60_u64, proptest::bool::ANY).prop_map(|(rows, answer)| Step::Lose { rows, answer }),
        2 => (0..60_u64).prop_map(Step::CrashAppending),
        1 => proptest::bool::ANY.prop_map(Step::Restart),
        1 => proptest::bool::ANY.prop_map(Step::LoseMySql),
        1 => Just(Step::StartMySql),
    ]
}

#[test]
fn acknowledged_means_exactly_once_on_mariadb() {
    acknowledged_means_exactly_once(Server::MariaDb);
}

#[test]
fn acknowledged_means_exactly_once_on_mysql() {
    acknowledged_means_exactly_once(Server::MySql);
}

fn acknowledged_means_exactly_once(server: Server) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(database) = runtime.block_on(server.start()) else { return };
    let database = RefCell::new(database);
    let cases = std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20, ..Config::default() };
    let steps = proptest::collection::vec(step(), 1..8);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(take(&steps, &mut database.borrow_mut()));
        Ok(())
    });
    outcome.unwrap();
}

/// Takes the steps with an empty database. Then waits until all rows are drained, and compares.
async fn take(steps: &[Step], database: &mut Database) {
    let mut there = true;
    if database.ended().is_some() {
        database.restart().await;
    }
    database.query("DROP DATABASE IF EXISTS records").await;
    database.query_anywhere("CREATE DATABASE records").await;
    let chaos = Chaos::start(database.address).await;
    let url = database.url_at(chaos.address);
    let mut relay = serve(Appends::folder_to_mysql(), &url).await;
    let mut appends = Appends::default();
    // The first append creates the tables.
    appends.append(&relay, 1).await;
    for step in steps {
        match *step {
            Step::Append(rows) => appends.append(&relay, rows).await,
            Step::Drain if there => outbox_empty(&relay).await,
            Step::Lose { rows, answer } if there => {
                let row = format!("{} ", appends.given()).leak();
                chaos.arm(if answer { When::Answer(row) } else { When::Before(Way::Up, row) }, Fault::Cut);
                appends.append(&relay, rows).await;
                chaos.struck().await;
            }
            Step::CrashAppending(millis) => {
                let load = appends.begin(&relay, None);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                let folder = relay.end_with(Signal::KILL).await;
                appends.end(load).await;
                relay = serve(folder, &url).await;
            }
            Step::Restart(killed) => {
                let folder = relay.end_with(if killed { Signal::KILL } else { Signal::TERM }).await;
                relay = serve(folder, &url).await;
            }
            Step::LoseMySql(killed) if there => {
                if killed {
                    database.kill().await
                } else {
                    database.stop().await
                }
                there = false;
            }
            Step::StartMySql if !there => {
                database.restart().await;
                there = true;
            }
            Step::Drain | Step::Lose { .. } | Step::LoseMySql(_) | Step::StartMySql => {}
        }
    }
    if !there {
        database.restart().await;
    }
    outbox_empty(&relay).await;
    assert!(appends.refused.is_empty(), "{:?}", appends.refused);
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0, "{}", relay.log());
    appends.are_in(database).await;
}
