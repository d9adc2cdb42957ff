//! A recorded feed for clients that accept permessage-deflate: what compression costs and what it saves.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    Outcome,
    place::Place,
    process::Process,
    sample::{self, Delivery, LONG, SOON, deliver, is_exact},
    server::{Kind, Plain, Server},
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};
use crate::{clients::Connected, failure::Failure};

const WINDOW: usize = 64;
/// Time before memory is read: a server may need a moment to give back memory that it does not need.
const SETTLE: Duration = Duration::from_secs(2);
/// Large enough that a client that falls behind loses no message, even if messages are snapshots.
const LOG: &str = "64MiB";
/// Bytes from which on the case `RelayAbove` compresses. The relay's own default is 64.
const ABOVE: usize = 256;

const PACES: [Pace; 2] = [
    Pace { name: "paced", title: "50 messages a second", burst: 1, per_second: 50 },
    Pace { name: "bursts", title: "bursts of ten messages, 20 bursts a second", burst: 10, per_second: 20 },
];

pub struct Scenario {
    pub clients: usize,
    pub seconds: u32,
    /// `None`: there is no recording.
    pub recording: Option<PathBuf>,
}

struct Pace {
    name: &'static str,
    title: &'static str,
    burst: u32,
    /// Bursts a second. Every server can do them: messages differ so much in size that fewer messages could not be
    /// compared.
    per_second: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Relay,
    RelayAbove,
    RelayAll,
    Bun,
    BunCompressed,
    Nchan,
    NchanCompressed,
}

struct Sample {
    version: String,
    clients: u64,
    /// The clients that agreed to compression.
    agreed: u64,
    /// Bytes per client: after the handshakes, and after all messages were delivered.
    idle: f64,
    end: f64,
    delivery: Delivery,
}

type Row = turns::Row<Case, Sample>;

const COLUMNS: [Column<Case, Sample>; 12] = [
    Column::text("server", name),
    Column::text("agreed", agreed),
    Column::text("compressed, %", compressed),
    Column::figure("bytes per delivery", |sample| Some(sample.bytes())),
    Column::figure("of the payload", |sample| Some(sample.bytes() / sample.payload_bytes())),
    Column::with_ratio("CPU µs per delivery", |sample| Some(sample.delivery.cpu)),
    Column::with_ratio("p50 ms", |sample| Some(sample.delivery.received.p50_ms)),
    Column::with_ratio("p99 ms", |sample| Some(sample.delivery.received.p99_ms)),
    Column::figure("resident bytes per idle client", |sample| Some(sample.idle)),
    Column::figure("at the end", |sample| Some(sample.end)),
    Column::figure("clients' CPU µs", |sample| Some(sample.delivery.cpu_of_clients)),
    Column::text("missed, again, late", mistakes),
];

pub fn run(scenario: &Scenario, kinds: &[Kind], runs: usize, place: &Place) -> Outcome {
    let Some(recording) = &scenario.recording else {
        eprintln!("left out: compressed: there is no recording of a feed, see --help");
        return Outcome { text: String::new(), good: true };
    };
    let cases: Vec<_> = Case::ALL.into_iter().filter(|case| kinds.contains(&case.kind())).collect();
    let clients = rounded(scenario.clients as f64);
    let file = recording.file_name().unwrap_or_default().to_string_lossy();
    let mut outcome = Outcome {
        text: format!(
            "### Compressed: messages of `{file}`, {clients} clients that offer permessage-deflate\n\n\
             Each message is as recorded but for one member more, its number and time. Bytes are those of frames and their \
             headers, × is the ratio to `edge-relay` without compression.\n\n"
        ),
        good: true,
    };
    for pace in &PACES {
        let scenario_name = format!("compressed {}", pace.name);
        let take = |case| take(scenario, pace, case, recording, place);
        let rows = measure(&scenario_name, &cases, Case::name, runs, take);
        let base = rows.iter().find(|row| row.kind == Case::Relay);
        outcome.text += &format!("{} messages, {}:\n\n", rounded(pace.messages(scenario).into()), pace.title);
        outcome.text += &table(&COLUMNS, &rows, base);
        outcome.good &= rows.iter().filter(|row| row.kind.kind().is_ours()).all(is_good);
    }
    outcome
}

fn take(scenario: &Scenario, pace: &Pace, case: Case, recording: &Path, place: &Place) -> Result<Sample, Failure> {
    let messages = pace.messages(scenario);
    let mut feed = place.own(&["feed", "--messages", &messages.to_string(), "--burst", &pace.burst.to_string()]);
    feed.args(["--pause-us", &(1_000_000 / pace.per_second).to_string(), "--recording"]).arg(recording);
    let start = |address: &str| case.start(address, place);
    let (server, mut feed) = sample::start_with(case.kind(), start, feed, place)?;
    feed.line("connected", SOON)?;

    let before = server.process.usage()?.resident;
    let mut clients = place.own(&["clients", "--clients", &scenario.clients.to_string(), "--compressed"]);
    clients.args(["--window", &WINDOW.to_string(), "--messages", &messages.to_string()]);
    clients.arg("--recording").arg(recording).arg(&server.target);
    let clients = Process::start("clients", &clients, &place.scratch)?;
    let connected: Connected = clients.line("connected", LONG)?.parse()?;
    thread::sleep(SETTLE);
    let idle = server.process.usage()?.resident;
    let delivery = deliver(messages, &mut feed, &server.process, &clients)?;
    thread::sleep(SETTLE);
    let end = server.process.usage()?.resident;
    let per_client = |resident: f64| (resident - before) / scenario.clients as f64;
    Ok(Sample {
        version: format!("{}{}", server.version, case.addition()),
        clients: scenario.clients as u64,
        agreed: connected.agreed,
        idle: per_client(idle),
        end: per_client(end),
        delivery,
    })
}

impl Pace {
    fn messages(&self, scenario: &Scenario) -> u32 {
        self.burst * self.per_second * scenario.seconds
    }
}

impl Case {
    /// In the order of the tables.
    const ALL: [Self; 7] = [
        Self::Relay,
        Self::RelayAbove,
        Self::RelayAll,
        Self::Bun,
        Self::BunCompressed,
        Self::Nchan,
        Self::NchanCompressed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::RelayAbove => "relay, compressed above",
            Self::RelayAll => "relay, all compressed",
            Self::Bun => "bun",
            Self::BunCompressed => "bun, compressed",
            Self::Nchan => "nchan",
            Self::NchanCompressed => "nchan, compressed",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Relay | Self::RelayAbove | Self::RelayAll => Kind::Pass,
            Self::Bun | Self::BunCompressed => Kind::Bun,
            Self::Nchan | Self::NchanCompressed => Kind::Nchan,
        }
    }

    fn is_compressed(self) -> bool {
        matches!(self, Self::RelayAbove | Self::RelayAll | Self::BunCompressed | Self::NchanCompressed)
    }

    /// What a table adds to a server's name.
    fn addition(self) -> String {
        match self {
            Self::BunCompressed => ", `perMessageDeflate`".to_owned(),
            Self::NchanCompressed => ", `nchan_deflate_message_for_websocket`".to_owned(),
            Self::Relay | Self::RelayAbove | Self::RelayAll => {
                self.above().map_or_else(String::new, |above| format!(", `compression = {{ above = {above} }}`"))
            }
            Self::Bun | Self::Nchan => String::new(),
        }
    }

    /// Messages below this size are not compressed by the relay. `None`: no message is, or another server compresses.
    fn above(self) -> Option<usize> {
        match self {
            Self::RelayAbove => Some(ABOVE),
            Self::RelayAll => Some(0),
            _ => None,
        }
    }

    fn start(self, feed: &str, place: &Place) -> Result<Server, Failure> {
        match self.kind() {
            Kind::Bun => Server::start_bun(feed, self.is_compressed(), place),
            Kind::Nchan => Server::start_nginx(self.is_compressed(), place),
            _ => Plain { slow: "close", log: LOG, compressed_above: self.above() }.start(feed, place),
        }
    }
}

impl Sample {
    fn deliveries(&self) -> f64 {
        self.delivery.received.deliveries as f64
    }

    /// The share of deliveries that came compressed.
    fn compressed(&self) -> f64 {
        self.delivery.received.compressed as f64 / self.deliveries()
    }

    /// Bytes of one delivery on the wire.
    fn bytes(&self) -> f64 {
        self.delivery.received.bytes as f64 / self.deliveries()
    }

    fn payload_bytes(&self) -> f64 {
        self.delivery.received.payload_bytes as f64 / self.deliveries()
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delivery { cpu, cpu_of_clients, received, .. } = &self.delivery;
        write!(f, "{} agreed, {:.0} B a client, {:.0} B at the end, ", self.agreed, self.idle, self.end)?;
        write!(f, "{cpu:.3} µs a delivery (clients {cpu_of_clients:.3}), {:.1} B a delivery, {received}", self.bytes())
    }
}

fn is_good(row: &Row) -> bool {
    let exact = |sample: &Sample| is_exact(&sample.delivery.received);
    let Row { kind, .. } = row;
    // Nchan agrees in any case, but without compression it has nothing compressed to send. If messages are few, all of
    // them may be too small for compression.
    let kept = |sample: &Sample| match (kind.is_compressed(), sample.delivery.received.compressed) {
        (true, 0) => *kind == Case::RelayAbove && sample.agreed == sample.clients,
        (true, _) => sample.agreed == sample.clients,
        (false, compressed) => compressed == 0,
    };
    row.failed() == 0 && row.samples().all(|sample| exact(sample) && kept(sample))
}

fn name(row: &Row) -> String {
    row.samples().next().map_or_else(|| row.kind.name().to_owned(), |sample| sample.version.clone())
}

/// The count of the run with the fewest.
fn agreed(row: &Row) -> String {
    row.samples().map(|sample| sample.agreed).min().map_or_else(|| "–".to_owned(), |agreed| rounded(agreed as f64))
}

/// All runs must have the same count, or the messages differ.
fn compressed(row: &Row) -> String {
    row.samples().next().map_or_else(|| "–".to_owned(), |sample| rounded(100.0 * sample.compressed()))
}

/// All runs together.
fn mistakes(row: &Row) -> String {
    let received = row.samples().map(|sample| &sample.delivery.received);
    zeros(sample::mistakes(received, row.failed()), is_good(row))
}
