//! Measures what records cost and prints a table in Markdown for each server: of this program, or of this one beside
//! another that the variable `BEFORE` names, in turn. The host, the server and the callers all run on this machine. The
//! argument `appended`, `drained`, `fan-out` or `read` has only that measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use mysql_async::{Conn, Opts, Value, prelude::Queryable};
use support::{
    appends::Appends,
    database::{Database, Server},
    guests,
    partner::Partner,
    place::use_program,
    probe::Probe,
    raw::Raw,
    relay::Relay,
    tenant::Folder,
};
use tokio::task::JoinSet;

/// How often each is measured.
const RUNS: usize = 5;
/// Bytes of a row.
const BYTES: usize = 200;
/// Calls at once.
const CALLS: usize = 100;
const SECONDS: u64 = 4;
/// Rows that wait for MySQL when the drain may begin.
const BACKLOG: u64 = 100_000;
/// Rows of the collection that is read, and most rows that wait elsewhere.
const MANY: u64 = 1_000_000;
/// Messages on their way to a filter.
const UNDER_WAY: usize = 100;
/// Clients of the fan-out beside the drain.
const CLIENTS: usize = 500;
const MESSAGES: u32 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let before = std::env::var_os("BEFORE").map(PathBuf::from);
    // By this one, before another one runs.
    guests::api();
    guests::probe();
    let programs: Vec<_> = before.map(Some).into_iter().chain([None]).collect();
    for server in [Server::MariaDb, Server::MySql] {
        measure(server, &programs).await;
    }
}

/// Measures each of these programs in turn, each with a server of its own. `None`: this one.
async fn measure(server: Server, programs: &[Option<PathBuf>]) {
    let mut databases = Vec::new();
    for _ in programs {
        let Some(database) = server.start_with(&["--innodb-buffer-pool-size=512M"]).await else { return };
        databases.push(database);
    }
    println!("\n{server:?} {}\n", databases[0].query("SELECT VERSION()").await.concat().concat());
    let mut table = Table::default();
    for _ in 0..RUNS {
        for ((nth, program), database) in programs.iter().enumerate().zip(&databases) {
            use_program(program.clone());
            write(&mut table, nth, database).await;
        }
    }
    if wants("read") {
        read(&mut table, programs, &databases).await;
    }
    table.print();
}

/// Measures what is read, in turn, with ever more rows that wait elsewhere.
async fn read(table: &mut Table, programs: &[Option<PathBuf>], databases: &[Database]) {
    let mut readings = Vec::new();
    for (program, database) in programs.iter().zip(databases) {
        use_program(program.clone());
        readings.push(Reading::start(database).await);
    }
    for waiting in [0, 1000, MANY] {
        for reading in &mut readings {
            reading.wait_elsewhere(waiting).await;
        }
        for _ in 0..RUNS {
            for (nth, reading) in readings.iter_mut().enumerate() {
                reading.read(table, nth).await;
            }
        }
    }
}

/// Whether something is to be measured: everything, or what is named on the command line.
fn wants(what: &str) -> bool {
    std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).all(|named| what.contains(&*named))
}

/// Measures what goes in.
async fn write(table: &mut Table, program: usize, database: &Database) {
    let mut add = |what: &str, figure| table.add(program, what, figure);
    if wants("appended") {
        add("appended/s, one commit each, one caller (rusqlite)", one_commit_each());
        for (where_to, database) in [("no MySQL", None), ("draining meanwhile", Some(database))] {
            let (rate, p50, p99, cpu, drained) = appends(database).await;
            add(&format!("**appended/s** through the API, 100 calls, {where_to}"), rate);
            add(&format!("p50 of an append through the API, ms, {where_to}"), p50);
            add(&format!("p99 of an append through the API, ms, {where_to}"), p99);
            add(&format!("host's CPU µs per row, {where_to}"), cpu);
            if database.is_some() {
                add("drained/s meanwhile, of those that the API appends", drained);
            }
            let (rate, cpu) = filter_appends(database).await;
            add(&format!("**appended/s** from a filter, a row in each message, {where_to}"), rate);
            add(&format!("host's CPU µs per row from a filter, {where_to}"), cpu);
        }
    }
    if wants("drained") {
        add("inserted/s, one row each (mysql_async, one connection)", inserts(database, 1).await);
        add("inserted/s, 1,000 rows each, by hand", inserts(database, 1000).await);
        add("**drained/s**, out of a backlog of 100,000 rows", drain(database).await);
    }
    if wants("fan-out") {
        let (quiet, draining) = fan_out(database).await;
        add("fan-out, CPU µs per delivery, nothing drained", quiet);
        add("fan-out, CPU µs per delivery, while 5,000 rows/s are appended and drained", draining);
    }
}

/// Rows of figures by program, in the order in which they come.
#[derive(Default)]
struct Table {
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

impl Table {
    fn add(&mut self, program: usize, what: &str, figure: f64) {
        eprintln!("{program} {what}: {figure:.2}");
        let nth = self.rows.iter().position(|(name, _)| name == what).unwrap_or_else(|| {
            self.rows.push((what.to_owned(), Vec::new()));
            self.rows.len() - 1
        });
        let (_, figures) = &mut self.rows[nth];
        figures.resize_with(figures.len().max(program + 1), Vec::new);
        figures[program].push(figure);
    }

    /// Prints medians, and the least and the greatest. A ratio is the median of those of each turn.
    fn print(self) {
        let title = if self.rows[0].1.len() == 1 {
            "median (lowest to highest) |\n| --- | --- |"
        } else {
            "before: median (lowest to highest) | now | ratio |\n| --- | --- | --- | --- |"
        };
        println!("| rows of {BYTES} bytes | {title}");
        for (what, figures) in self.rows {
            let shown: Vec<_> = figures.iter().map(|figures| shown(figures)).collect();
            print!("| {what} | {}", shown.join(" | "));
            if let [before, now] = &figures[..] {
                let ratios: Vec<_> = before.iter().zip(now).map(|(before, now)| now / before).collect();
                print!(" | {:.2}", of_sorted(&ratios)[1]);
            }
            println!(" |");
        }
    }
}

/// The lowest, the median, and the highest.
fn of_sorted(figures: &[f64]) -> [f64; 3] {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

fn shown(figures: &[f64]) -> String {
    let [low, median, high] = of_sorted(figures).map(|figure| match figure {
        1000.0.. => format!("{figure:.0}"),
        _ => format!("{figure:.2}"),
    });
    format!("{median} ({low} to {high})")
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
async fn appends(database: Option<&Database>) -> (f64, f64, f64, f64, f64) {
    let relay = relay(database).await;
    call_all(&relay, 200).await;
    let drained = async || relay.metric("edge_relay_records_drained_total", &[]).await;
    let before = drained().await;
    let (began, cpu) = (Instant::now(), cpu(&relay, ""));
    let mut took = call_all(&relay, SECONDS * 1000).await;
    let (cpu, seconds) = (self::cpu(&relay, "") - cpu, began.elapsed().as_secs_f64());
    let drained = (drained().await - before) / seconds;
    took.sort_unstable();
    let at = |share: f64| took[(took.len() as f64 * share) as usize] as f64 / 1000.0;
    (took.len() as f64 / seconds, at(0.5), at(0.99), cpu / took.len() as f64, drained)
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

/// A relay whose filter appends what its partner asks for.
async fn probing(database: Option<&Database>, partner: &Partner) -> Relay {
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "[limits]\nrecords = \"2GiB\"\n");
    let Some(database) = database else { return Relay::serve(folder).await };
    empty(database).await;
    folder.append("relay.toml", "[store]\nsize = \"4GiB\"\nurl = { env = \"STORE_URL\" }\n");
    Relay::serve_with(folder, &[("STORE_URL", &database.url())]).await
}

/// Has a filter append a row for each message. Returns rows per second, and the host's CPU µs per row.
async fn filter_appends(database: Option<&Database>) -> (f64, f64) {
    let mut partner = Partner::start().await;
    let relay = probing(database, &partner).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let command = format!("append log {}", "x".repeat(BYTES));
    assert_eq!(probe.ask(&command).await.len(), 36);
    for _ in 0..UNDER_WAY {
        probe.peer.text(command.clone()).await;
    }
    let (began, before, mut rows) = (Instant::now(), cpu(&relay, ""), 0);
    while began.elapsed().as_secs() < SECONDS {
        assert_eq!(probe.answer().await.len(), 36);
        probe.peer.text(command.clone()).await;
        rows += 1;
    }
    let rows = f64::from(rows);
    (rows / began.elapsed().as_secs_f64(), (cpu(&relay, "") - before) / rows)
}

/// A collection of a million rows in MySQL that is read.
struct Reading {
    relay: Relay,
    probe: Probe,
    waiting: u64,
    _partner: Partner,
}

impl Reading {
    async fn start(database: &Database) -> Self {
        let mut partner = Partner::start().await;
        let relay = probing(Some(database), &partner).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        // It makes the tables.
        assert_eq!(probe.ask("append read newest").await.len(), 36);
        relay.metric_is("edge_relay_records_waiting", &[], 0.0).await;
        // The others are a second apart, the last one a day ago.
        let thousand =
            "(WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 999) SELECT n FROM n)";
        let id = "UNHEX(CONCAT(LPAD(HEX((UNIX_TIMESTAMP() - 86400 - 1000 * a.n - b.n) * 1000), 12, '0'), '70008', \
            LPAD(HEX(1000 * a.n + b.n), 15, '0')))";
        database
            .query(&format!(
                "INSERT INTO records (tenant, collection, id, data) SELECT 't', 'read', {id}, REPEAT('x', {BYTES}) FROM \
                 {thousand} AS a, {thousand} AS b"
            ))
            .await;
        let rows = database.query("SELECT count(*) FROM records").await.concat().concat();
        assert_eq!(rows, (MANY + 1).to_string());
        database.read_only(true).await;
        Self { relay, probe, waiting: 0, _partner: partner }
    }

    /// Has this many rows of another collection wait in the outbox.
    async fn wait_elsewhere(&mut self, waiting: u64) {
        while self.waiting < waiting {
            assert_eq!(self.probe.ask(&format!("append-many other 1000 {BYTES}")).await, "1000");
            self.waiting += 1000;
        }
        assert_eq!(self.relay.metric("edge_relay_records_waiting", &[]).await, waiting as f64);
    }

    /// Reads of a hundred rows, one after another: the median and the 99th percentile in ms.
    async fn read(&mut self, table: &mut Table, program: usize) {
        for (what, command) in [("latest", "records read 100"), ("range", "range read 0 9999999999999 100")] {
            let mut took = Vec::new();
            let began = Instant::now();
            while began.elapsed().as_secs() < SECONDS {
                let asked = Instant::now();
                assert_eq!(self.probe.ask(command).await.split(' ').count(), 100);
                took.push(asked.elapsed());
            }
            took.sort_unstable();
            for percent in [50, 99] {
                let figure = took[took.len() * percent / 100].as_secs_f64() * 1000.0;
                let waiting = self.waiting;
                let what = format!("`{what}` of 100 rows of a million, {waiting} rows wait elsewhere: p{percent}, ms");
                table.add(program, &what, figure);
            }
        }
    }
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
