//! A tenant at half load beside a hostile one: what its clients notice.

mod attack;
mod attackers;
#[allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // The tests use it too.
#[path = "../../../hostile/bombs.rs"]
mod bombs;

use std::{
    fmt::{self, Display},
    thread,
    time::Duration,
};

use super::{
    Outcome,
    host::{Folder, Host},
    partner::Partner,
    place::Place,
    process::{Cores, Process},
    sample::{LONG, SOON, is_exact},
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};
use crate::{
    clients::{Part, Received},
    failure::Failure,
};
use attack::Attack;
use attackers::Attackers;

/// Messages a second to each client. With 1,000 clients the shard's thread is busy half of the time, as the table
/// shows.
const RATE: u32 = 80;
/// Windows without the attack, and as many with it.
const WINDOWS: usize = 7;
const WINDOW: usize = 64;
/// Longer than the last call of an attack takes to end.
const SETTLE: Duration = Duration::from_millis(500);
const BROKE: &str = "edge_relay_guest_failures_total";

const NEIGHBOUR: &str = include_str!("../../relay/tenant.toml");

pub struct Scenario {
    pub clients: usize,
    /// Length of each window.
    pub seconds: u32,
}

/// All windows beside one attack.
struct Sample {
    windows: Vec<Pair>,
    received: Received,
}

/// A window without the attack, and the one with it that followed.
#[derive(Clone)]
struct Pair {
    alone: Window,
    during: Window,
}

#[derive(Clone)]
struct Window {
    p50_ms: f64,
    p99_ms: f64,
    /// The share of a core that the shards' threads took.
    shards: f64,
    /// Calls of components that broke, per second.
    broke: f64,
}

type Row = turns::Row<Attack, Sample>;

const COLUMNS: [Column<Attack, Pair>; 8] = [
    Column::text("the other tenant", |row| row.kind.title().to_owned()),
    Column::figure("its calls that broke/s", |pair| Some(pair.during.broke)),
    Column::figure("p50 ms alone", |pair| Some(pair.alone.p50_ms)),
    Column::figure("p50 ms beside it", |pair| Some(pair.during.p50_ms)),
    Column::figure("p99 ms alone", |pair| Some(pair.alone.p99_ms)),
    Column::figure("p99 ms beside it", |pair| Some(pair.during.p99_ms)),
    Column::figure("p99 beside it / alone", |pair| Some(pair.during.p99_ms / pair.alone.p99_ms)),
    Column::figure("shard's thread alone, of a core", |pair| Some(pair.alone.shards)),
];

const MISTAKES: [Column<Attack, Sample>; 2] = [
    Column::text("the other tenant", |row| row.kind.title().to_owned()),
    Column::text("missed, again, late of the neighbour's", mistakes),
];

pub fn run(scenario: &Scenario, runs: usize, place: &Place) -> Outcome {
    let rows = measure("neighbours", &Attack::ALL, Attack::title, runs, |attack| take(scenario, attack, place));
    let text = format!(
        "### Neighbours: {} clients of a tenant with a filter, {RATE} messages a second, beside a hostile tenant\n\n\
         {WINDOWS} windows of {} s a run without the attack and as many with it, in turn.\n\n",
        rounded(scenario.clients as f64),
        scenario.seconds
    );
    let pairs: Vec<_> = rows.iter().map(pairs).collect();
    let text = text + &table(&COLUMNS, &pairs, None);
    let good = rows.iter().all(is_good);
    Outcome { text: if good { text } else { text + &table(&MISTAKES, &rows, None) }, good }
}

fn take(scenario: &Scenario, attack: Attack, place: &Place) -> Result<Sample, Failure> {
    let (partner, folder) = (Partner::new()?, Folder::new("neighbours", place)?);
    attack.write(&folder, &partner, place)?;
    let (messages, parts) = (RATE * scenario.seconds, 2 * WINDOWS);
    let mut feed = place.own(&["feed", "--messages", &messages.to_string(), "--parts", &parts.to_string()]);
    feed.args(["--pause-us", &(1_000_000 / RATE).to_string()]);
    let mut feed = Process::start("feed", &feed, &place.scratch)?;
    let address = feed.line("listening", SOON)?;
    folder.manifest("market", &NEIGHBOUR.replace("FEED", &address))?;
    folder.link("market", "filter.wasm", &place.build("components/market/filter")?)?;
    let host = folder.serve(Cores::All, place)?;
    feed.line("connected", SOON)?;
    let all = messages * u32::try_from(parts).unwrap_or_default();
    let mut clients = place.own(&["clients", "--clients", &scenario.clients.to_string()]);
    clients.args(["--window", &WINDOW.to_string(), "--messages", &all.to_string(), "--parts", &parts.to_string()]);
    clients.arg(format!("{}/market?channel=prices", host.clients));
    let clients = Process::start("clients", &clients, &place.scratch)?;
    clients.line("connected", LONG)?;

    let mut windows = Vec::new();
    let attackers = Attackers::new(attack, &host, partner, &folder);
    for _ in 0..WINDOWS {
        let alone = window(scenario, &host, &mut feed)?;
        attackers.set(true, &host)?;
        let during = window(scenario, &host, &mut feed)?;
        attackers.set(false, &host)?;
        windows.push(Pair { alone, during });
    }
    drop(attackers);
    for pair in &mut windows {
        for window in [&mut pair.alone, &mut pair.during] {
            let part: Part = clients.line("part", LONG)?.parse()?;
            (window.p50_ms, window.p99_ms) = (part.p50_ms, part.p99_ms);
        }
    }
    Ok(Sample { windows, received: clients.line("received", LONG)?.parse()? })
}

/// Plays one part of the messages.
fn window(scenario: &Scenario, host: &Host, feed: &mut Process) -> Result<Window, Failure> {
    thread::sleep(SETTLE);
    let (broke, shards) = (host.metric(BROKE)?, host.process.cpu_of_threads("shard")?);
    feed.tell()?;
    feed.line("played", LONG)?;
    let seconds = f64::from(scenario.seconds);
    Ok(Window {
        p50_ms: 0.0,
        p99_ms: 0.0,
        shards: (host.process.cpu_of_threads("shard")? - shards) / 1e6 / seconds,
        broke: (host.metric(BROKE)? - broke) / seconds,
    })
}

/// The pairs of all runs.
fn pairs(row: &Row) -> turns::Row<Attack, Pair> {
    let runs = row.samples().flat_map(|sample| sample.windows.iter().cloned().map(Some)).collect();
    turns::Row { kind: row.kind, runs }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows = self.windows.iter();
        let windows = windows.map(|Pair { alone, during }| format!("{:.1} → {:.1}", alone.p99_ms, during.p99_ms));
        let shards = self.windows.first().map_or(0.0, |pair| pair.alone.shards);
        let broke: f64 = self.windows.iter().map(|pair| pair.during.broke).sum::<f64>() / WINDOWS as f64;
        let windows = windows.collect::<Vec<_>>().join(", ");
        write!(f, "p99 ms {windows}; shards {shards:.2} of a core; {broke:.0} calls broke/s; {}", self.received)
    }
}

/// Whether all of the neighbour's messages came, and whether in each window the other tenant attacked as it should.
fn is_good(row: &Row) -> bool {
    let attacked = |sample: &Sample| sample.windows.iter().all(|pair| pair.during.broke > 0.0);
    row.failed() == 0 && row.samples().all(|sample| is_exact(&sample.received) && attacked(sample))
}

fn mistakes(row: &Row) -> String {
    let received = row.samples().map(|sample| &sample.received);
    zeros(super::sample::mistakes(received, row.failed()), is_good(row))
}
