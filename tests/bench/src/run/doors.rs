//! What a client costs by its door: to let it in, to keep it, and to deliver to it.

use std::{
    fmt::{self, Display},
    process::Command,
    thread,
    time::Duration,
};

use super::{
    Outcome,
    herd::attempts,
    place::Place,
    process::Process,
    sample::{self, Delivery, LONG, SOON, deliver, is_exact},
    scenario,
    server::{Kind, Plain, Server},
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};
use crate::{
    clients::{Door, Returned},
    failure::Failure,
};

/// Clients that come and go before the others: the first ones make the server take memory that it keeps.
const FIRST: usize = 300;
/// Most clients that messages are delivered to.
const RECEIVERS: usize = 1_000;
/// Time before memory is read: for the server to notice that clients are gone, and to give back what it does not need.
const SETTLE: Duration = Duration::from_secs(2);
/// Large enough that a client that falls behind loses no message.
const LOG: &str = "64MiB";

pub struct Scenario {
    pub clients: usize,
    pub seconds: u32,
}

/// Clients that all came at once and then did nothing.
struct Crowd {
    clients: usize,
    entered: Returned,
    /// The server's CPU until all were in, in µs for each client.
    cpu: f64,
    /// The server's bytes for each client.
    resident: f64,
}

type Row<S> = turns::Row<Door, S>;

const CONNECTIONS: [Column<Door, Crowd>; 6] = [
    Column::text("door", title),
    Column::with_ratio("s until the last is in", |crowd| Some(crowd.entered.seconds)),
    Column::with_ratio("CPU µs per client let in", |crowd| Some(crowd.cpu)),
    Column::with_ratio("resident bytes per idle client", |crowd| Some(crowd.resident)),
    Column::text("answered 503, lost, late", |row| attempts(row.samples().map(|crowd| &crowd.entered))),
    Column::text("not in, closed", absent),
];

const DELIVERIES: [Column<Door, Delivery>; 8] = [
    Column::text("door", title),
    Column::figure("deliveries/s", |delivery| Some(delivery.per_second)),
    Column::with_ratio("CPU µs per delivery", |delivery| Some(delivery.cpu)),
    Column::with_ratio("bytes per delivery", |delivery| {
        Some(delivery.received.bytes as f64 / delivery.received.deliveries as f64)
    }),
    Column::with_ratio("p50 ms", |delivery| Some(delivery.received.p50_ms)),
    Column::with_ratio("p99 ms", |delivery| Some(delivery.received.p99_ms)),
    Column::figure("clients' CPU µs", |delivery| Some(delivery.cpu_of_clients)),
    Column::text("missed, again, late", mistakes),
];

pub fn run(scenario: &Scenario, runs: usize, place: &Place) -> Outcome {
    let rows = measure("doors crowd", &Door::ALL, Door::name, runs, |door| crowd(scenario, door, place));
    let mut outcome = Outcome {
        text: format!(
            "### Doors: what a client costs by the door that it takes\n\n\
             `edge-relay serve` without code; × is the ratio to the plain WebSocket. {} clients come at once. A client \
             of the Centrifuge protocol is in when it has the replies to `connect` and `subscribe`, the others are in \
             with the head of their answer:\n\n",
            rounded(scenario.clients as f64)
        ),
        good: rows.iter().all(all_are_in),
    };
    outcome.text += &table(&CONNECTIONS, &rows, plain(&rows));
    for pace in paces(scenario) {
        let name = format!("doors {}", pace.name);
        let rows = measure(&name, &Door::ALL, Door::name, runs, |door| play(&pace, door, place));
        outcome.text += &format!("{}, {} clients:\n\n", pace.title, rounded(pace.clients as f64));
        outcome.text += &table(&DELIVERIES, &rows, plain(&rows));
        outcome.good &= rows.iter().all(is_good);
    }
    outcome
}

/// Flood, bursts and paced messages, as they are played to compare servers.
fn paces(scenario: &Scenario) -> impl Iterator<Item = scenario::Scenario> {
    let played = scenario::played(Some(scenario.clients.min(RECEIVERS)), scenario.seconds);
    played.into_iter().filter(|pace| !pace.connections)
}

fn crowd(scenario: &Scenario, door: Door, place: &Place) -> Result<Crowd, Failure> {
    let (server, _feed) = start(place.own(&["feed"]), place)?;
    drop(enter(FIRST, door, &server, place)?);
    thread::sleep(SETTLE);
    let before = server.process.usage()?;
    let (_clients, entered) = enter(scenario.clients, door, &server, place)?;
    let after = server.process.usage()?;
    thread::sleep(SETTLE);
    let settled = server.process.usage()?;
    let count = scenario.clients as f64;
    Ok(Crowd {
        clients: scenario.clients,
        entered,
        cpu: (after.cpu - before.cpu) / count,
        resident: (settled.resident - before.resident) / count,
    })
}

/// Lets clients in, all at once. They stay as long as their process runs.
fn enter(clients: usize, door: Door, server: &Server, place: &Place) -> Result<(Process, Returned), Failure> {
    let mut crowd = place.own(&["crowd", "--clients", &clients.to_string(), "--door", door.name()]);
    crowd.arg(address(server, door));
    let crowd = Process::start("clients", &crowd, &place.scratch)?;
    let entered: Returned = crowd.line("entered", LONG)?.parse()?;
    Ok((crowd, entered))
}

fn play(pace: &scenario::Scenario, door: Door, place: &Place) -> Result<Delivery, Failure> {
    let messages = pace.messages.to_string();
    let mut feed = place.own(&["feed", "--messages", &messages, "--burst", &pace.burst.to_string()]);
    feed.args(["--pause-us", &pace.pause.as_micros().to_string()]);
    let (server, mut feed) = start(feed, place)?;
    let mut clients = place.own(&["clients", "--clients", &pace.clients.to_string(), "--door", door.name()]);
    clients.args(["--window", &pace.window.to_string(), "--messages", &messages]).arg(address(&server, door));
    let clients = Process::start("clients", &clients, &place.scratch)?;
    clients.line("connected", LONG)?;
    thread::sleep(pace.settle);
    deliver(pace.messages, &mut feed, &server.process, &clients)
}

/// Starts the relay with a tenant without code, and its feed.
fn start(feed: Command, place: &Place) -> Result<(Server, Process), Failure> {
    let tenant = Plain { slow: "close", log: LOG, compressed_above: None };
    let (server, feed) = sample::start_with(Kind::Pass, |address| tenant.start(address, place), feed, place)?;
    feed.line("connected", SOON)?;
    Ok((server, feed))
}

fn address(server: &Server, door: Door) -> String {
    format!("{}{}", server.target, door.path())
}

fn plain<S>(rows: &[Row<S>]) -> Option<&Row<S>> {
    rows.iter().find(|row| row.kind == Door::WebSocket)
}

impl Crowd {
    fn not_in(&self) -> u64 {
        (self.clients as u64).saturating_sub(self.entered.back)
    }
}

impl Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} µs a client, {:.0} B a client, {}", self.cpu, self.resident, self.entered)
    }
}

fn title<S>(row: &Row<S>) -> String {
    let title = match row.kind {
        Door::WebSocket => "plain WebSocket",
        Door::Events => "server-sent events",
        Door::Centrifuge => "Centrifuge protocol, JSON",
    };
    title.to_owned()
}

fn all_are_in(row: &Row<Crowd>) -> bool {
    row.failed() == 0 && row.samples().all(|crowd| crowd.not_in() + crowd.entered.closed == 0)
}

/// Clients that never got in, or were closed, in all runs together.
fn absent(row: &Row<Crowd>) -> String {
    let sum = |of: fn(&Crowd) -> u64| row.samples().map(of).sum::<u64>();
    let mut text = format!("{}, {}", sum(Crowd::not_in), sum(|crowd| crowd.entered.closed));
    if row.failed() > 0 {
        text += &format!("; {} runs failed", row.failed());
    }
    zeros(text, all_are_in(row))
}

fn is_good(row: &Row<Delivery>) -> bool {
    row.failed() == 0 && row.samples().all(|delivery| is_exact(&delivery.received))
}

fn mistakes(row: &Row<Delivery>) -> String {
    let received = row.samples().map(|delivery| &delivery.received);
    zeros(sample::mistakes(received, row.failed()), is_good(row))
}
