//! As many calls as one core can do, and what one call costs.

use std::{
    fmt::{self, Display},
    time::{Duration, Instant},
};

use super::{Guest, Scenario};
use crate::{
    clients::{Asked, Received},
    failure::{Context, Failure},
    run::{
        Outcome,
        host::{self, Folder, Host},
        languages::Language,
        partner::{self, Partner},
        place::Place,
        process::{Cores, Process},
        sample::{LONG, SOON, deliver},
        table::{Column, rounded, table, zeros},
        turns::{self, measure},
    },
};

/// Clients that ask at once.
const ASKERS: usize = 64;
/// Products in the tenant's state, and so in every answer.
const PRODUCTS: usize = 10;
/// The last product.
const EXPECT: &str = "\"P9-USD\"";
const QUESTION: &str = r#"{"get":"public"}"#;
/// Messages for each second of a run without pauses.
const FLOOD: u32 = 25_000;
/// Messages a second when they come one by one: each has been filtered before the next comes.
const ONE_BY_ONE: u32 = 1_000;
/// More messages than one client can send, so that only the core limits them.
const UNLIMITED: u32 = 100_000;
/// How many messages the feed sends at once when it does not pause.
const BURST: u32 = 64;
/// Longest wait until the filter has put its first messages into the state.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Batches,
    OneByOne,
    Questions,
    Requests,
}

/// The language that does the work. `None`: there is no filter.
type Worker = Option<Language>;

struct Sample {
    calls_per_second: f64,
    cpu: f64,
    /// 50th and 99th percentile, in ms. `None`: they would measure a queue.
    latency: Option<(f64, f64)>,
    /// Messages or answers that were lost or wrong.
    wrong: u64,
}

type Row = turns::Row<Worker, Sample>;

const COLUMNS: [Column<Worker, Sample>; 6] = [
    Column::text("", |row| row.kind.map_or("without a filter", Language::name).to_owned()),
    Column::figure("per second", |sample| Some(sample.calls_per_second)),
    Column::with_ratio("CPU µs each", |sample| Some(sample.cpu)),
    Column::figure("p50 ms", |sample| Some(sample.latency?.0)),
    Column::figure("p99 ms", |sample| Some(sample.latency?.1)),
    Column::text("wrong", wrong),
];

pub fn run(scenario: &Scenario, guests: &[Guest], runs: usize, place: &Place) -> Outcome {
    let mut outcome = Outcome { text: String::new(), good: true };
    for work in Work::ALL {
        let without = (work.is_filtering()).then_some(None);
        let workers: Vec<Worker> = without.into_iter().chain(guests.iter().map(|guest| Some(guest.language))).collect();
        let name = |worker: Worker| worker.map_or("none", Language::name);
        let take = |worker| take(scenario, work, worker, guests, place);
        let rows = measure(&format!("guests {}", work.name()), &workers, name, runs, take);
        let base = rows.iter().find(|row| row.kind == Some(Language::Rust));
        outcome.text += &format!("{}:\n\n{}", work.title(), table(&COLUMNS, &rows, base));
        outcome.good &= rows.iter().all(is_good);
    }
    outcome
}

fn take(scenario: &Scenario, work: Work, worker: Worker, guests: &[Guest], place: &Place) -> Result<Sample, Failure> {
    let guest = guests.iter().find(|guest| Some(guest.language) == worker);
    match work {
        Work::Batches | Work::OneByOne => filter(scenario, work, guest, place),
        Work::Questions | Work::Requests => ask(scenario, work, guest.context("no guest")?, place),
    }
}

/// Sends messages to one client, which counts them.
fn filter(scenario: &Scenario, work: Work, guest: Option<&Guest>, place: &Place) -> Result<Sample, Failure> {
    let (per_second, burst, pause) = match work {
        Work::Batches => (FLOOD, BURST, 0),
        _ => (ONE_BY_ONE, 1, 1_000_000 / ONE_BY_ONE),
    };
    let messages = per_second * scenario.seconds;
    let mut feed = place.own(&["feed", "--messages", &messages.to_string(), "--burst", &burst.to_string()]);
    feed.args(["--pause-us", &pause.to_string()]);
    let mut feed = Process::start_on(Cores::Others, "feed", &feed, &place.scratch)?;
    let address = feed.line("listening", SOON)?;
    let roles: &[_] = if guest.is_some() { &["filter"] } else { &[] };
    let host = serve(guest, roles, &address, place)?;
    feed.line("connected", SOON)?;
    let channel = if guest.is_some() { "prices" } else { "main" };
    let mut clients = place.own(&["clients", "--clients", "1", "--messages", &messages.to_string()]);
    clients.arg(format!("{}/market?channel={channel}", host.clients));
    let clients = Process::start_on(Cores::Others, "clients", &clients, &place.scratch)?;
    clients.line("connected", SOON)?;
    let delivery = deliver(messages, &mut feed, &host.process, &clients)?;
    let Received { missed, again, late, closed, p50_ms, p99_ms, .. } = delivery.received;
    let wrong = missed + again + late + closed;
    let latency = (work == Work::OneByOne).then_some((p50_ms, p99_ms));
    Ok(Sample { calls_per_second: delivery.per_second, cpu: delivery.cpu, latency, wrong })
}

/// Sends questions to the client handler over WebSockets, or requests to the API.
fn ask(scenario: &Scenario, work: Work, guest: &Guest, place: &Place) -> Result<Sample, Failure> {
    let partner = Partner::new()?;
    let host = serve(Some(guest), &["filter", "client", "api"], &partner.address.to_string(), place)?;
    fill(&host, &partner)?;
    let mut clients = place.own(&["ask", "--clients", &ASKERS.to_string(), "--expect", EXPECT]);
    clients.args(["--seconds", &scenario.seconds.to_string()]);
    match work {
        Work::Questions => clients.args(["--question", QUESTION]).arg(format!("{}/market", host.clients)),
        _ => clients.arg(format!("{}/market/public", host.api)),
    };
    let clients = Process::start_on(Cores::Others, "clients", &clients, &place.scratch)?;
    clients.line("warm", SOON)?;
    let before = host.process.usage()?;
    let asked: Asked = clients.line("asked", LONG)?.parse()?;
    let after = host.process.usage()?;
    let answers = asked.answers as f64;
    Ok(Sample {
        calls_per_second: answers / asked.seconds,
        cpu: (after.cpu - before.cpu) / answers,
        latency: Some((asked.p50_ms, asked.p99_ms)),
        wrong: asked.wrong,
    })
}

/// A relay on one core with the tenant `market` in these roles.
fn serve(guest: Option<&Guest>, roles: &[&str], feed: &str, place: &Place) -> Result<Host, Failure> {
    let folder = Folder::new("guests", place)?;
    let mut components = String::new();
    let mut files = Vec::new();
    for (role, path) in guest.iter().flat_map(|guest| &guest.components).filter(|(role, _)| roles.contains(role)) {
        let file = path.file_name().and_then(|file| file.to_str()).context("a file's name")?;
        components += &format!("{role} = \"{file}\"\n");
        if !files.contains(&file) {
            folder.link("market", file, path)?;
            files.push(file);
        }
    }
    let manifest = format!(
        "name = \"market\"\n[[upstream]]\nname = \"feed\"\nurl = \"ws://{feed}/\"\n[components]\n{components}\
         [channels.\"prices\"]\n[channels.\"main\"]\n[limits]\nclient-messages-per-second = {UNLIMITED}\n"
    );
    folder.manifest("market", &manifest)?;
    folder.serve(Cores::First, place)
}

/// Makes the filter put prices into the state, and waits until they are there.
fn fill(host: &Host, partner: &Partner) -> Result<(), Failure> {
    let mut upstream = partner.accept()?;
    for nth in 0..PRODUCTS {
        let ticker = format!(r#"{{"type":"ticker","product_id":"P{nth}-USD","price":"{}.54"}}"#, 43_210 + nth);
        partner::send(&mut upstream, ticker.as_bytes())?;
    }
    partner::stay(upstream);
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = host::get(host.api, "/market/public")?;
        if answer.contains(EXPECT) {
            return Ok(());
        }
        (Instant::now() < until).then_some(()).with_context(|| format!("the state has {answer}"))?;
    }
}

impl Work {
    const ALL: [Self; 4] = [Self::Batches, Self::OneByOne, Self::Questions, Self::Requests];

    fn name(self) -> &'static str {
        match self {
            Self::Batches => "filter, batches",
            Self::OneByOne => "filter, one by one",
            Self::Questions => "client handler",
            Self::Requests => "API",
        }
    }

    fn title(self) -> String {
        match self {
            Self::Batches => {
                "Messages through the filter to one client, as fast as they go, up to 256 a call".to_owned()
            }
            Self::OneByOne => {
                format!(
                    "Messages through the filter to one client, one by one, {} a second",
                    rounded(ONE_BY_ONE.into())
                )
            }
            Self::Questions => {
                format!("Messages to the client handler, `{QUESTION}`, and its replies, {ASKERS} plain WebSockets")
            }
            Self::Requests => format!("`GET /public` of the API, {ASKERS} keep-alive connections"),
        }
    }

    fn is_filtering(self) -> bool {
        matches!(self, Self::Batches | Self::OneByOne)
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls_per_second, cpu, latency, wrong } = self;
        write!(f, "{calls_per_second:.0}/s, {cpu:.1} µs each, {wrong} wrong")?;
        latency.map_or(Ok(()), |(p50, p99)| write!(f, ", p50 {p50:.2} ms, p99 {p99:.2} ms"))
    }
}

fn is_good(row: &Row) -> bool {
    row.failed() == 0 && row.samples().all(|sample| sample.wrong == 0)
}

/// All runs together.
fn wrong(row: &Row) -> String {
    let mut text = row.samples().map(|sample| sample.wrong).sum::<u64>().to_string();
    if row.failed() > 0 {
        text += &format!("; {} runs failed", row.failed());
    }
    zeros(text, is_good(row))
}
