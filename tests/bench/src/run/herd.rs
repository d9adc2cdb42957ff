//! Every client is cut off at once and reconnects at once.

use std::{
    fmt::{self, Display},
    thread,
    time::Duration,
};

use super::{
    Outcome,
    place::Place,
    process::Process,
    sample::{self, LONG, SOON, is_exact},
    server::Kind,
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};
use crate::{
    clients::{Received, Returned},
    failure::Failure,
};

/// Messages before the cut, and as many while all clients reconnect.
const MESSAGES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
const WINDOW: usize = 64;
/// Time before memory is read: a server may need a moment to give back memory that it does not need.
const SETTLE: Duration = Duration::from_secs(2);

pub struct Scenario {
    pub clients: usize,
}

struct Sample {
    version: String,
    clients: usize,
    /// What all clients got before the cut.
    received: Received,
    returned: Returned,
    /// The server's CPU from the cut to the end, in µs for each client that came back.
    cpu: f64,
    /// Bytes with all clients: before the cut, and after they came back.
    before: f64,
    after: f64,
    peak: f64,
}

type Row = turns::Row<Kind, Sample>;

const COLUMNS: [Column<Kind, Sample>; 11] = [
    Column::text("server", name),
    Column::figure("s to the last", |sample| Some(sample.returned.seconds)),
    Column::figure("s to half of them", |sample| Some(sample.returned.p50_seconds)),
    Column::figure("handshakes/s", |sample| Some(sample.returned.back as f64 / sample.returned.handshake_seconds)),
    Column::with_ratio("CPU µs per client", |sample| Some(sample.cpu)),
    Column::figure("MiB before", |sample| Some(mebibytes(sample.before))),
    Column::figure("MiB after", |sample| Some(mebibytes(sample.after))),
    Column::figure("after / before", |sample| Some(sample.after / sample.before)),
    Column::figure("peak MiB", |sample| Some(mebibytes(sample.peak))),
    Column::text("answered 503, lost, late", |row| attempts(row.samples().map(|sample| &sample.returned))),
    Column::text("not back, missed, again, out of order", mistakes),
];

pub fn run(scenario: &Scenario, kinds: &[Kind], runs: usize, place: &Place) -> Outcome {
    let rows = measure("herd", kinds, Kind::name, runs, |kind| take(scenario, kind, place));
    let bare = rows.iter().find(|row| row.kind == Kind::Ceiling);
    let text = format!(
        "### Herd: {} clients are cut off at once, and come back at once\n\n\
         Those of `edge-relay` resume, each from a position of its own, while {MESSAGES} messages are published, and are \
         back once they have got all; the others have got nothing but the handshake. CPU is from the cut on, the old \
         connections' ends and all messages included.\n\n",
        rounded(scenario.clients as f64)
    );
    Outcome {
        text: text + &table(&COLUMNS, &rows, bare),
        good: rows.iter().filter(|row| row.kind.is_ours()).all(is_good),
    }
}

fn take(scenario: &Scenario, kind: Kind, place: &Place) -> Result<Sample, Failure> {
    let mut feed = place.own(&["feed", "--messages", &MESSAGES.to_string(), "--parts", "2"]);
    feed.args(["--pause-us", &PAUSE.as_micros().to_string()]);
    let (server, mut feed) = sample::start(kind, feed, place)?;
    feed.line("connected", SOON)?;

    let mut clients = place.own(&["herd", "--clients", &scenario.clients.to_string()]);
    clients.args(["--window", &WINDOW.to_string(), "--messages", &MESSAGES.to_string()]);
    clients.args(kind.history().iter().flat_map(|path| ["--history", path]));
    clients.arg(&server.target);
    let mut clients = Process::start("clients", &clients, &place.scratch)?;
    clients.line("connected", LONG)?;
    feed.tell()?;
    let received: Received = clients.line("received", LONG)?.parse()?;
    thread::sleep(SETTLE);
    let before = server.process.usage()?;
    clients.tell()?;
    clients.line("cut", LONG)?;
    feed.tell()?;
    let returned: Returned = clients.line("returned", LONG)?.parse()?;
    let done = server.process.usage()?;
    thread::sleep(SETTLE);
    let after = server.process.usage()?;
    Ok(Sample {
        version: server.version,
        clients: scenario.clients,
        received,
        cpu: (done.cpu - before.cpu) / returned.back as f64,
        returned,
        before: before.resident,
        after: after.resident,
        peak: after.peak,
    })
}

impl Sample {
    fn not_back(&self) -> u64 {
        (self.clients as u64).saturating_sub(self.returned.back)
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, before, after, peak, returned, .. } = self;
        write!(f, "{cpu:.1} µs a client, {before:.0} B before, {after:.0} B after, peak {peak:.0} B, {returned}")
    }
}

fn is_good(row: &Row) -> bool {
    let exact = |sample: &Sample| {
        let Returned { missed, again, out_of_order, closed, .. } = sample.returned;
        is_exact(&sample.received) && sample.not_back() + missed + again + out_of_order + closed == 0
    };
    row.failed() == 0 && row.samples().all(exact)
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn name(row: &Row) -> String {
    row.samples().next().map_or_else(|| row.kind.name().to_owned(), |sample| sample.version.clone())
}

/// Attempts that did not let their clients in, in all runs together: answered 503, lost, late.
pub fn attempts<'a>(runs: impl Iterator<Item = &'a Returned>) -> String {
    let (mut busy, mut lost, mut late) = (0, 0, 0);
    for returned in runs {
        busy += returned.busy;
        lost += returned.lost;
        late += returned.late;
    }
    format!("{busy}, {lost}, {late}")
}

/// All runs together.
fn mistakes(row: &Row) -> String {
    let sum = |of: fn(&Sample) -> u64| row.samples().map(of).sum::<u64>();
    let not_back = sum(Sample::not_back);
    let missed = sum(|it| it.returned.missed + it.received.missed);
    let again = sum(|it| it.returned.again + it.received.again);
    let out_of_order = sum(|it| it.returned.out_of_order + it.received.late);
    let mut text = format!("{not_back}, {missed}, {again}, {out_of_order}");
    let closed = sum(|it| it.returned.closed + it.received.closed);
    if closed > 0 {
        text += &format!("; {closed} clients closed");
    }
    if row.failed() > 0 {
        text += &format!("; {} runs failed", row.failed());
    }
    zeros(text, is_good(row))
}
