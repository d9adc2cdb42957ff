//! Measures what records cost and prints a table in Markdown. The host, MariaDB and the callers all run on this
//! machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    time::{Duration, Instant},
};

use mysql_async::{Conn, Opts, Value, prelude::Queryable};
use support::{
    appends::Appends,
    database::{Database, Server},
    guests,
    partner::Partner,
    probe::Probe,
    raw::Raw,
    relay::Relay,
    tenant::Folder,
};
use tokio::task::JoinSet;

const RUNS: usize = 3;
/// Bytes of a row.
const BYTES: usize = 200;
/// Calls at once.
const CALLS: usize = 100;
const SECONDS: u64 = 4;
/// Rows that wait for MySQL when the drain may begin.
const BACKLOG: u64 = 100_000;
/// Clients of the fan-out beside the drain.
const CLIENTS: usize = 500;
const MESSAGES: u32 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for server in [Server::MariaDb, Server::MySql] {
        measure(server).await;
    }
}

async fn measure(server: Server) {
    let Some(database) = server.start_with(&["--innodb-buffer-pool-size=256M"]).await else { return };
    println!("\n{server:?} {}\n", database.query("SELECT VERSION()").await.concat().concat());
    let runs = [(); RUNS];
    let mut table = Table::default();
    for _ in runs {
        table.add("appended/s, one commit each, one caller (rusqlite)", one_commit_each());
        let (rate, p50, p99, cpu) = appends(None).await;
        table.add("**appended/s**, 100 calls, no MySQL", rate);
        table.add("— p50 of an append, ms", p50);
        table.add("— p99 of an append, ms", p99);
        table.add("— host's CPU µs per row", cpu);
        let (rate, p50, p99, cpu) = appends(Some(&database)).await;
        table.add("**appended/s**, 100 calls, draining meanwhile", rate);
        table.add("— p50 of an append, ms", p50);
        table.add("— p99 of an append, ms", p99);
        table.add("— host's CPU µs per row, drained too as far as it got", cpu);
        table.add("inserted/s, one row each (mysql_async, one connection)", inserts(&database, 1).await);
        table.add("inserted/s, 1,000 rows each, by hand", inserts(&database, 1000).await);
        table.add("**drained/s**, out of a backlog of 100,000 rows", drain(&database).await);
        for waiting in [0, 1000, BACKLOG] {
            for (what, (p50, p99)) in reads(&database, waiting).await {
                table.add(&format!("`{what}` of 100 rows of 100,000, {waiting} rows wait elsewhere: p50, ms"), p50);
                table.add(&format!("`{what}` of 100 rows of 100,000, {waiting} rows wait elsewhere: p99, ms"), p99);
            }
        }
        let (quiet, draining) = fan_out(&database).await;
        table.add("fan-out, CPU µs per delivery, nothing drained", quiet);
        table.add("fan-out, CPU µs per delivery, while 5,000 rows/s are appended and drained", draining);
    }
    table.print();
}

/// Rows of figures, in the order in which they come.
#[derive(Default)]
struct Table {
    rows: Vec<(String, Vec<f64>)>,
    /// The row that the next figure of a run belongs to.
    next: usize,
}

impl Table {
    fn add(&mut self, what: &str, figure: f64) {
        if self.rows.get(self.next).is_none_or(|(name, _)| name != what) {
            self.next = if self.rows.first().is_some_and(|(name, _)| name == what) { 0 } else { self.rows.len() };
        }
        if self.next == self.rows.len() {
            self.rows.push((what.to_owned(), Vec::new()));
        }
        self.rows[self.next].1.push(figure);
        self.next += 1;
        eprintln!("{what}: {figure:.2}");
    }

    fn print(mut self) {
        println!("| rows of {BYTES} bytes | median | lowest | highest |\n| --- | --- | --- | --- |");
        for (what, figures) in &mut self.rows {
            figures.sort_by(f64::total_cmp);
            let [median, low, high] = [figures[figures.len() / 2], figures[0], figures[figures.len() - 1]].map(shown);
            println!("| {what} | {median} | {low} | {high} |");
        }
    }
}

fn shown(figure: f64) -> String {
    if figure >= 1000.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

/// A relay whose tenant appends. Its rows go to MySQL if there is one.
async fn relay(database: Option<&Database>) -> Relay {
    let folder = Folder::new("").api("t", &format!("[limits]\napi-instances = {CALLS}\nrecords = \"1GiB\""));
    match database {
        None => Relay::serve(folder).await,
        Some(database) => {
            empty(database).await;
            folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
            Relay::serve_with(folder, &[("STORE_URL", &database.url())]).await
        }
    }
}

async fn empty(database: &Database) {
    database.query("DROP DATABASE IF EXISTS records").await;
    database.query_anywhere("CREATE DATABASE records").await;
}

/// The rate of a program that commits each row by itself.
fn one_commit_each() -> f64 {
    let folder = Folder::empty();
    let connection = rusqlite::Connection::open(folder.path("rows.sqlite")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB NOT NULL)").unwrap();
    let (began, mut rows) = (Instant::now(), 0);
    while began.elapsed().as_secs() < SECONDS {
        connection.execute("INSERT INTO rows (data) VALUES (?1)", [vec![b'x'; BYTES]]).unwrap();
        rows += 1;
    }
    f64::from(rows) / began.elapsed().as_secs_f64()
}

/// Returns rows per second, the median and the 99th percentile of an append in ms, and the host's CPU µs per row.
async fn appends(database: Option<&Database>) -> (f64, f64, f64, f64) {
    let relay = relay(database).await;
    call_all(&relay, 200).await;
    let (began, cpu) = (Instant::now(), cpu(&relay, ""));
    let mut took = call_all(&relay, SECONDS * 1000).await;
    let (cpu, seconds) = (self::cpu(&relay, "") - cpu, began.elapsed().as_secs_f64());
    took.sort_unstable();
    let at = |share: f64| took[(took.len() as f64 * share) as usize] as f64 / 1000.0;
    (took.len() as f64 / seconds, at(0.5), at(0.99), cpu / took.len() as f64)
}

/// Makes all calls at once, each appending one row after another. Returns how many µs each append took.
async fn call_all(relay: &Relay, millis: u64) -> Vec<u64> {
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let mut http = relay.http().await;
        calls.spawn(async move {
            let answer = http.get(&format!("/t/append-for?to=log&bytes={BYTES}&ms={millis}")).await;
            answer.body.split(' ').map(|took| took.parse().unwrap_or_else(|_| panic!("{answer:?}"))).collect::<Vec<_>>()
        });
    }
    calls.join_all().await.concat()
}

/// Inserts into a table like the relay's, by hand. Returns rows per second.
async fn inserts(database: &Database, rows: usize) -> f64 {
    let mut connection = Conn::new(Opts::from_url(&database.url()).unwrap()).await.unwrap();
    let up = include_str!("../../migrations/mysql/V1__records.up.sql").replace("EXISTS records", "EXISTS by_hand");
    connection.query_drop("DROP TABLE IF EXISTS by_hand").await.unwrap();
    connection.query_drop(up).await.unwrap();
    let sql = format!("INSERT INTO by_hand VALUES (?,?,?,?){}", ",(?,?,?,?)".repeat(rows - 1));
    let statement = connection.prep(sql).await.unwrap();
    let (began, mut next) = (Instant::now(), 0_u128);
    while began.elapsed().as_secs() < SECONDS {
        let values = (next..next + rows as u128).flat_map(|id| {
            let id = Value::Bytes(id.to_be_bytes().to_vec());
            [Value::Bytes(b"t".to_vec()), Value::Bytes(b"log".to_vec()), id, Value::Bytes(vec![b'x'; BYTES])]
        });
        connection.exec_drop(&statement, values.collect::<Vec<_>>()).await.unwrap();
        next += rows as u128;
    }
    next as f64 / began.elapsed().as_secs_f64()
}

/// Drains a backlog. Returns rows per second.
async fn drain(database: &Database) -> f64 {
    let relay = relay(Some(database)).await;
    // The first row creates the tables, which the relay could not do later.
    assert_eq!(relay.api_get("/t/append?to=log&rows=1").await.1, "1");
    relay.metric_is("edge_relay_records_waiting", &[], 0.0).await;
    database.read_only(true).await;
    let mut appends = Appends::default();
    let load = appends.begin(&relay, None);
    relay.metric_reaches("edge_relay_records_waiting", &[], BACKLOG as f64).await;
    appends.end(load).await;
    database.read_only(false).await;
    let metric = async || relay.metric("edge_relay_records_drained_total", &[]).await;
    let first = relay.metric_reaches("edge_relay_records_drained_total", &[], 2.0).await;
    let began = Instant::now();
    relay.metric_is("edge_relay_records_waiting", &[], 0.0).await;
    (metric().await - first) / began.elapsed().as_secs_f64()
}

/// Reads of a collection while this many rows of another wait in the outbox: the median and the 99th percentile in ms.
async fn reads(database: &Database, waiting: u64) -> Vec<(&'static str, (f64, f64))> {
    const READ: u64 = 100_000;
    let mut partner = Partner::start().await;
    empty(database).await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "[limits]\nrecords = \"1GiB\"\n");
    folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    let relay = Relay::serve_with(folder, &[("STORE_URL", &database.url())]).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let append = async |probe: &mut Probe, collection: &str, rows: u64| {
        for begun in (0..rows).step_by(1000) {
            let rows = (rows - begun).min(1000);
            assert_eq!(probe.ask(&format!("append-many {collection} {rows} {BYTES}")).await, rows.to_string());
        }
    };
    append(&mut probe, "read", READ).await;
    relay.metric_is("edge_relay_records_waiting", &[], 0.0).await;
    database.read_only(true).await;
    append(&mut probe, "other", waiting).await;
    let mut measured = Vec::new();
    for (what, command) in [("latest", "records read 100"), ("range", "range read 0 9999999999999 100")] {
        let mut took = Vec::new();
        let began = Instant::now();
        while began.elapsed().as_secs() < SECONDS {
            let asked = Instant::now();
            assert_eq!(probe.ask(command).await.split(' ').count(), 100);
            took.push(asked.elapsed());
        }
        took.sort_unstable();
        let at = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1000.0;
        measured.push((what, (at(50), at(99))));
    }
    database.read_only(false).await;
    measured
}

/// CPU µs of the shard per delivery: with nothing else to do, then while rows are appended and drained.
async fn fan_out(database: &Database) -> (f64, f64) {
    let mut partner = Partner::start().await;
    empty(database).await;
    let folder = Appends::folder_to_mysql().tenant("feed", &partner.url(), "");
    let relay = Relay::serve_with(folder, &[("STORE_URL", &database.url())]).await;
    let mut peer = partner.accept().await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut socket = Raw::connect(relay.clients, "/feed").await;
        clients.spawn(async move {
            for _ in 0..2 * MESSAGES {
                assert_eq!(socket.frame().await.unwrap().payload.len(), BYTES);
            }
        });
    }
    let mut paced = async || {
        let before = cpu(&relay, "shard");
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..MESSAGES {
            ticks.tick().await;
            peer.text(&"x".repeat(BYTES)).await;
        }
        (cpu(&relay, "shard") - before) / f64::from(MESSAGES) / CLIENTS as f64
    };
    let quiet = paced().await;
    let mut appends = Appends::default();
    let load = appends.begin(&relay, Some(5000));
    let draining = paced().await;
    appends.end(load).await;
    clients.join_all().await;
    (quiet, draining)
}

/// CPU of the relay's threads with this name, user and system, in µs.
fn cpu(relay: &Relay, name: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", relay.id())).unwrap();
    let of_task = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (comm, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks: f64 = fields[12].parse::<f64>().ok()? + fields[13].parse::<f64>().ok()?;
        // A tick is 10 ms on Linux.
        comm.contains(name).then_some(ticks * 10_000.0)
    };
    tasks.map_while(Result::ok).filter_map(of_task).sum()
}
