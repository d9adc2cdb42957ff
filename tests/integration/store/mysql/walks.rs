//! Reads page by page, wherever the rows are: each row comes exactly once, and in order.

use std::cell::RefCell;

use proptest::{
    prelude::{Strategy, prop_oneof},
    test_runner::{Config, TestRunner},
};
use support::{
    database::{Database, Server},
    guests,
    partner::Partner,
    probe::Probe,
    relay::Relay,
    tenant::Folder,
};

use super::{outbox_empty, serve};

/// How often the test runs. `PROPTEST_CASES` sets another number.
const CASES: u32 = 3;

/// Rows of one size that are appended together. A page has at most 8 MiB.
#[derive(Clone, Copy, Debug)]
struct Rows {
    count: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Case {
    /// Those in MySQL, and those that wait in the outbox.
    drained: Vec<Rows>,
    waiting: Vec<Rows>,
    /// Most rows of a page.
    page: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let rows = || {
        prop_oneof![
            (1..300_usize).prop_map(|count| Rows { count, bytes: 10 }),
            (1..120_usize, 2_000..20_000_usize).prop_map(|(count, bytes)| Rows { count, bytes }),
            (6..12_usize).prop_map(|count| Rows { count, bytes: 1_000_000 }),
        ]
    };
    let some = || proptest::collection::vec(rows(), 0..6);
    let page = prop_oneof![1 => 1..9_usize, 3 => 9..1001_usize];
    (some(), some(), page).prop_map(|(drained, waiting, page)| Case { drained, waiting, page })
}

struct World {
    database: Database,
    relay: Relay,
    probe: Probe,
    /// Each case has a collection of its own.
    cases: usize,
    _partner: Partner,
}

impl World {
    async fn new(server: Server) -> Option<Self> {
        let database = server.start().await?;
        let mut partner = Partner::start().await;
        let limits = "[limits]\nfilter-call = \"60s\"\nrecords = \"1GiB\"\n";
        let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), limits);
        folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
        let relay = serve(folder, &database.url()).await;
        let probe = Probe::new(&relay, &mut partner, "t").await;
        Some(Self { database, relay, probe, cases: 0, _partner: partner })
    }

    async fn check(&mut self, case: &Case) {
        self.cases += 1;
        let collection = format!("log{}", self.cases);
        let mut total = self.append(&collection, &case.drained).await;
        outbox_empty(&self.relay).await;
        self.database.read_only(true).await;
        total += self.append(&collection, &case.waiting).await;
        let walk = format!("walk {collection} {}", case.page);
        assert_eq!(self.probe.ask(&walk).await, format!("{total} rows, in order"));
        // And while they drain.
        self.database.read_only(false).await;
        assert_eq!(self.probe.ask(&walk).await, format!("{total} rows, in order"));
        outbox_empty(&self.relay).await;
        assert_eq!(self.probe.ask(&walk).await, format!("{total} rows, in order"));
    }

    async fn append(&mut self, collection: &str, all: &[Rows]) -> usize {
        for Rows { count, bytes } in all {
            let command = format!("append-many {collection} {count} {bytes}");
            assert_eq!(self.probe.ask(&command).await, count.to_string());
        }
        all.iter().map(|rows| rows.count).sum()
    }
}

fn rows_come_once_and_in_order(server: Server) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(world) = runtime.block_on(World::new(server)) else { return };
    let world = RefCell::new(world);
    let cases = std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4, ..Config::default() };
    let outcome = TestRunner::new(config).run(&case(), |case| {
        runtime.block_on(world.borrow_mut().check(&case));
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn rows_come_once_and_in_order_from_mariadb() {
    rows_come_once_and_in_order(Server::MariaDb);
}

#[test]
fn rows_come_once_and_in_order_from_mysql() {
    rows_come_once_and_in_order(Server::MySql);
}
