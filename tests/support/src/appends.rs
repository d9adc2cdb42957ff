//! Many calls that append records at once, and the rows that their callers were told are kept.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use super::{database::Database, http::Http, relay::Relay, tenant::Folder};

/// The collection that the rows go to.
const COLLECTION: &str = "log";
/// How many calls append at once.
const CALLS: u64 = 50;
const ROWS: u64 = 10;
/// The size of each row.
const BYTES: u64 = 200;

/// The rows that a test gave to a relay, each known by its number.
#[derive(Default)]
pub struct Appends {
    /// The number of the next row.
    next: Arc<AtomicU64>,
    /// The rows that components were told are kept.
    pub kept: HashSet<u64>,
    /// The errors that components saw when rows were refused.
    pub refused: Vec<String>,
}

/// Calls that append until [`Appends::end`].
pub struct Appending {
    calls: JoinSet<(Vec<u64>, Vec<String>)>,
    stop: Arc<AtomicBool>,
}

impl Appends {
    /// A tenant `t` whose API appends what it is asked for.
    pub fn folder() -> Folder {
        Folder::new("").api("t", &format!("[limits]\napi-instances = {CALLS}\nrecords = \"1GiB\""))
    }

    /// The same tenant, with its records going to MySQL at `STORE_URL`.
    pub fn folder_to_mysql() -> Folder {
        let folder = Self::folder();
        folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
        folder
    }

    /// How many rows were given to a relay so far.
    pub fn given(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Appends this many rows by one call.
    pub async fn append(&mut self, relay: &Relay, rows: u64) {
        let first = self.next.fetch_add(rows, Ordering::Relaxed);
        let answer = relay.http().await.get(&path(first, rows)).await;
        assert_eq!(answer.body, rows.to_string());
        self.kept.extend(first..first + rows);
    }

    /// Appends rows until told to end: this many a second, or as fast as they go in.
    pub fn begin(&self, relay: &Relay, per_second: Option<u32>) -> Appending {
        let stop = Arc::new(AtomicBool::new(false));
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let (next, stop, api) = (Arc::clone(&self.next), Arc::clone(&stop), relay.api());
            let every = per_second.map(|rate| Duration::from_secs(CALLS * ROWS) / rate);
            let mut ticks = tokio::time::interval(every.unwrap_or(Duration::from_nanos(1)));
            calls.spawn(async move {
                let (mut kept, mut refused) = (Vec::new(), Vec::new());
                // A host that was killed takes no connection and does not answer. Nothing is promised about those rows.
                let Some(mut http) = Http::try_connect(api).await else { return (kept, refused) };
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let first = next.fetch_add(ROWS, Ordering::Relaxed);
                    let Some(answer) = http.try_get(&path(first, ROWS)).await else { break };
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    let (count, error) = answer.body.split_once(' ').unwrap_or((&answer.body, ""));
                    kept.extend(first..first + count.parse::<u64>().unwrap());
                    refused.extend((!error.is_empty()).then(|| error.to_owned()));
                }
                (kept, refused)
            });
        }
        Appending { calls, stop }
    }

    /// Lets the calls under way finish, unless the host has gone.
    pub async fn end(&mut self, appending: Appending) {
        appending.stop.store(true, Ordering::Relaxed);
        for (kept, refused) in appending.calls.join_all().await {
            self.kept.extend(kept);
            self.refused.extend(refused);
        }
    }

    /// Checks that MySQL has each row that is kept exactly once, and no row that was not given to the relay.
    pub async fn are_in(&self, database: &Database) {
        self.are_in_all(&[database]).await;
    }

    /// Checks the same of several servers together, which do not know of each other: a row whose commit one of them
    /// could not tell of may be in the next one, too. Returns how many are in more than one.
    pub async fn are_in_all(&self, databases: &[&Database]) -> usize {
        let sql = format!("SELECT CAST(CAST(data AS CHAR) AS UNSIGNED) FROM records WHERE collection = '{COLLECTION}'");
        let (mut there, mut twice) = (HashSet::new(), 0);
        for database in databases {
            if database.query("SHOW TABLES LIKE 'records'").await.is_empty() {
                continue;
            }
            let rows: Vec<u64> = database.query(&sql).await.iter().map(|row| row[0].parse().unwrap()).collect();
            let of_this: HashSet<u64> = rows.iter().copied().collect();
            assert_eq!(rows.len(), of_this.len(), "rows are there twice");
            twice += of_this.intersection(&there).count();
            there.extend(of_this);
        }
        let lost: Vec<_> = self.kept.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "{} of {} rows are lost: {:?}…",
            lost.len(),
            self.kept.len(),
            &lost[..lost.len().min(9)]
        );
        let given = self.given();
        assert!(there.iter().all(|number| *number < given), "rows that nobody appended");
        twice
    }
}

fn path(first: u64, rows: u64) -> String {
    format!("/t/append?to={COLLECTION}&first={first}&rows={rows}&bytes={BYTES}")
}
