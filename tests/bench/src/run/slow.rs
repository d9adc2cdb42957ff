//! Clients that do not read: what they cost the clients that do, and the relay's memory.

use std::fmt::{self, Display};

use super::{
    Outcome,
    place::Place,
    process::Process,
    sample::{self, Delivery, LONG, SOON, deliver, is_exact},
    server::Plain,
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};
use crate::{clients::Stalled, failure::Failure};

/// Ten of these bursts a second are 1,000 messages and 5,000,000 deliveries. In bursts of 25, that is more than two
/// cores can do.
const BURST: u32 = 100;
const BURSTS_PER_SECOND: u32 = 10;
/// One in this many clients stalls.
const ONE_IN: usize = 100;
/// Five seconds of messages: no client that reads is ever that late.
const LOG: &str = "1MiB";
const WINDOW: usize = 64;

pub struct Scenario {
    pub clients: usize,
    pub seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    NobodyStalls,
    Closed,
    Skip,
}

struct Sample {
    delivery: Delivery,
    /// Peak memory once the other clients have everything.
    peak: f64,
    stalled: Option<Stalled>,
}

type Row = turns::Row<Case, Sample>;

const COLUMNS: [Column<Case, Sample>; 8] = [
    Column::text("one client of a hundred", |row| row.kind.name().to_owned()),
    Column::with_ratio("CPU µs per delivery", |sample| Some(sample.delivery.cpu)),
    Column::with_ratio("p50 ms", |sample| Some(sample.delivery.received.p50_ms)),
    Column::with_ratio("p99 ms", |sample| Some(sample.delivery.received.p99_ms)),
    Column::with_ratio("p99.9 ms", |sample| Some(sample.delivery.received.p999_ms)),
    Column::with_ratio("peak memory, MiB", |sample| Some(sample.peak / f64::from(1 << 20))),
    Column::text("missed, again, late", mistakes),
    Column::text("those that stalled", became),
];

pub fn run(scenario: &Scenario, runs: usize, place: &Place) -> Outcome {
    let cases = [Case::NobodyStalls, Case::Closed, Case::Skip];
    let rows = measure("slow", &cases, Case::name, runs, |case| take(scenario, case, place));
    let base = rows.iter().find(|row| row.kind == Case::NobodyStalls);
    let (clients, seconds) = (rounded(scenario.clients as f64), scenario.seconds);
    let rate = rounded((BURST * BURSTS_PER_SECOND).into());
    let text = format!(
        "### Slow: {rate} messages a second to {clients} clients, of which some do not read for {seconds} s\n\n\
         `edge-relay serve` without code, a log of {LOG}; the messages come {BURST} at a time. Latencies are of those that \
         read, × is the ratio to nobody stalling.\n\n"
    );
    Outcome { text: text + &table(&COLUMNS, &rows, base), good: rows.iter().all(is_good) }
}

fn take(scenario: &Scenario, case: Case, place: &Place) -> Result<Sample, Failure> {
    let messages = BURST * BURSTS_PER_SECOND * scenario.seconds;
    let mut feed = place.own(&["feed", "--messages", &messages.to_string(), "--burst", &BURST.to_string()]);
    feed.args(["--pause-us", &(1_000_000 / BURSTS_PER_SECOND).to_string()]);
    let mut feed = Process::start("feed", &feed, &place.scratch)?;
    let tenant = Plain { slow: case.policy(), log: LOG, compressed_above: None };
    let server = tenant.start(&feed.line("listening", SOON)?, place)?;
    feed.line("connected", SOON)?;

    let stalled = if case == Case::NobodyStalls { 0 } else { scenario.clients.div_ceil(ONE_IN) };
    let mut clients = place.own(&["clients", "--clients", &scenario.clients.to_string()]);
    clients.args(["--window", &WINDOW.to_string(), "--messages", &messages.to_string()]);
    clients.args(["--stalled", &stalled.to_string(), &server.target]);
    let mut clients = Process::start("clients", &clients, &place.scratch)?;
    clients.line("connected", LONG)?;
    let delivery = deliver(messages, &mut feed, &server.process, &clients)?;
    let peak = server.process.usage()?.peak;
    let stalled = match stalled {
        0 => None,
        _ => {
            clients.tell()?;
            Some(clients.line("stalled", LONG)?.parse()?)
        }
    };
    Ok(Sample { delivery, peak, stalled })
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::NobodyStalls => "reads like all others",
            Self::Closed => "stalls, `slow = \"close\"`",
            Self::Skip => "stalls, `slow = \"skip\"`",
        }
    }

    fn policy(self) -> &'static str {
        if self == Self::Skip { "skip" } else { "close" }
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delivery { cpu, cpu_of_clients, received, .. } = &self.delivery;
        write!(f, "{cpu:.3} µs a delivery (clients {cpu_of_clients:.3}), peak {:.0} B, {received}", self.peak)?;
        self.stalled.as_ref().map_or(Ok(()), |stalled| write!(f, "; stalled: {stalled}"))
    }
}

fn is_good(row: &Row) -> bool {
    let ordered = |sample: &Sample| sample.stalled.as_ref().is_none_or(|stalled| stalled.mistakes == 0);
    row.failed() == 0 && row.samples().all(|sample| is_exact(&sample.delivery.received) && ordered(sample))
}

fn mistakes(row: &Row) -> String {
    let received = row.samples().map(|sample| &sample.delivery.received);
    zeros(sample::mistakes(received, row.failed()), is_good(row))
}

/// All runs together.
fn became(row: &Row) -> String {
    let mut sum = Stalled::default();
    for stalled in row.samples().filter_map(|sample| sample.stalled.as_ref()) {
        sum.complete += stalled.complete;
        sum.skipped += stalled.skipped;
        sum.told += stalled.told;
        sum.cut += stalled.cut;
        sum.mistakes += stalled.mistakes;
    }
    let all = [
        (sum.complete, "got everything"),
        (sum.skipped, "skipped"),
        (sum.told, "closed with 1013"),
        (sum.cut, "found the connection ended"),
        (sum.mistakes, "messages again or late"),
    ];
    let some = all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    some.collect::<Vec<_>>().join(", ")
}
