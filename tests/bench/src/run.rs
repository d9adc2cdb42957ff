//! Runs every server in every scenario, in turn, and prints what each cost. Some scenarios run the relay's tenants.

mod compressed;
mod deliveries;
mod density;
mod doors;
mod guests;
mod herd;
mod host;
mod languages;
mod life;
mod machine;
mod neighbours;
mod partner;
mod place;
mod process;
mod sample;
mod scenario;
mod server;
mod slow;
mod table;
mod turns;
mod visit;

pub use process::leash;

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
};
use place::Place;
use server::Kind;

const HELP: &str = "\
Measures what a delivery costs the relay, compared with a bare server and its peers. Prints Markdown on standard output,
and a line about each run on standard error.

  --only A,B      scenarios (flood, bursts, paced, many, idle, slow, herd, compressed, density, guests, neighbours,
                  doors); all by default
  --servers A,B   servers (ceiling, pass, market, bun, ws, nchan); by default all that are installed. The scenario slow
                  and the ones from density on have servers of their own. In compressed, pass, bun and nchan run both
                  with compression and without
  --runs N        runs of each server in each scenario, with the servers in turn (3)
  --clients N     clients, instead of the scenarios' own 1,000, 5,000 and 10,000; doors delivers to 1,000 at most
  --seconds N     how long paced messages are played (8; 30 in slow), and each window of neighbours (2); the flood has
                  2,500 messages for each second
  --tenants N     tenants, instead of density's 1,000
  --recording FILE  the feed whose messages `compressed` plays (../shared/feeds/coinbase.frames.jsonl); without it,
                  `compressed` is left out
  --relay PATH    the relay's program; by default `edge-relay` beside this one

`.ci/setup bench` installs the peers into $BENCH_TOOLS and the guests' toolchains into $LANGUAGE_TOOLS. The exit code is
1 if the relay lost, repeated or reordered a message, or did not do what a scenario asks.
";

/// A feed that is no part of the project. It may lie beside a clone.
const RECORDING: &str = "../shared/feeds/coinbase.frames.jsonl";
const SECONDS: u32 = 8;
/// The kernel takes 4 MB for a client that stalls. After that, the relay's log must still overflow.
const SLOW_SECONDS: u32 = 30;
/// Seconds of each of the 14 windows for each of nine attacks.
const WINDOW_SECONDS: u32 = 2;

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    if arguments.flag("--help") {
        print!("{HELP}");
        return Ok(());
    }
    let runs: usize = arguments.option("--runs")?.unwrap_or(3);
    let clients: Option<usize> = arguments.option("--clients")?;
    let seconds: Option<u32> = arguments.option("--seconds")?;
    let tenants: Option<usize> = arguments.option("--tenants")?;
    let recording = recording(arguments.option("--recording")?)?;
    let scenarios = chosen(arguments.option("--only")?, all(clients, tenants, seconds, recording), Scenario::name)?;
    let kinds = chosen(arguments.option("--servers")?, Kind::ALL.to_vec(), |kind| kind.name())?;
    let here = env::current_exe().context("this program's own path")?;
    let relay = arguments.option("--relay")?.unwrap_or_else(|| here.with_file_name("edge-relay"));
    arguments.end()?;

    process::allow_many_files()?;
    let place = Place::new(here, relay, env::var_os("BENCH_TOOLS").map(PathBuf::from))?;
    let kinds = prepared(kinds, &place)?;
    println!("{}", machine::description(runs));
    let mut good = true;
    for scenario in &scenarios {
        let outcome = match scenario {
            Scenario::Played(scenario) => deliveries::run(scenario, &kinds, runs, &place),
            Scenario::Slow(scenario) => slow::run(scenario, runs, &place),
            Scenario::Herd(scenario) => herd::run(scenario, &kinds, runs, &place),
            Scenario::Compressed(scenario) => compressed::run(scenario, &kinds, runs, &place),
            Scenario::Density(scenario) => density::run(scenario, runs, &place),
            Scenario::Guests(scenario) => guests::run(scenario, runs, &place),
            Scenario::Neighbours(scenario) => neighbours::run(scenario, runs, &place),
            Scenario::Doors(scenario) => doors::run(scenario, runs, &place),
        };
        print!("{}", outcome.text);
        good &= outcome.good;
    }
    good.then_some(()).context("the relay has failed, or not every message came once and in order")
}

enum Scenario {
    Played(scenario::Scenario),
    Slow(slow::Scenario),
    Herd(herd::Scenario),
    Compressed(compressed::Scenario),
    Density(density::Scenario),
    Guests(guests::Scenario),
    Neighbours(neighbours::Scenario),
    Doors(doors::Scenario),
}

/// The result of a scenario.
struct Outcome {
    /// Its heading and tables.
    text: String,
    /// Whether the relay did everything that it should.
    good: bool,
}

impl Scenario {
    fn name(&self) -> &str {
        match self {
            Self::Played(scenario) => scenario.name,
            Self::Slow(_) => "slow",
            Self::Herd(_) => "herd",
            Self::Compressed(_) => "compressed",
            Self::Density(_) => "density",
            Self::Guests(_) => "guests",
            Self::Neighbours(_) => "neighbours",
            Self::Doors(_) => "doors",
        }
    }
}

fn all(
    clients: Option<usize>,
    tenants: Option<usize>,
    seconds: Option<u32>,
    recording: Option<PathBuf>,
) -> Vec<Scenario> {
    let slow = slow::Scenario { clients: clients.unwrap_or(5_000), seconds: seconds.unwrap_or(SLOW_SECONDS) };
    let herd = herd::Scenario { clients: clients.unwrap_or(10_000) };
    let played = scenario::played(clients, seconds.unwrap_or(SECONDS)).into_iter().map(Scenario::Played);
    let compressed =
        compressed::Scenario { clients: clients.unwrap_or(1_000), seconds: seconds.unwrap_or(SECONDS), recording };
    let neighbours =
        neighbours::Scenario { clients: clients.unwrap_or(1_000), seconds: seconds.unwrap_or(WINDOW_SECONDS) };
    let doors = doors::Scenario { clients: clients.unwrap_or(10_000), seconds: seconds.unwrap_or(SECONDS) };
    let others = [
        Scenario::Slow(slow),
        Scenario::Herd(herd),
        Scenario::Compressed(compressed),
        Scenario::Density(density::Scenario { tenants: tenants.unwrap_or(1_000) }),
        Scenario::Guests(guests::Scenario { seconds: seconds.unwrap_or(SECONDS) }),
        Scenario::Neighbours(neighbours),
        Scenario::Doors(doors),
    ];
    played.chain(others).collect()
}

/// The recording's path, made absolute since the feed runs elsewhere. A file that was named must be there.
fn recording(named: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    match named {
        Some(file) => file.canonicalize().with_context(|| file.display().to_string()).map(Some),
        None => Ok(Path::new(RECORDING).canonicalize().ok()),
    }
}

/// Leaves out peers that are not installed.
fn prepared(kinds: Vec<Kind>, place: &Place) -> Result<Vec<Kind>, Failure> {
    let mut prepared = Vec::new();
    for kind in kinds {
        match kind.prepare(place) {
            Ok(()) => prepared.push(kind),
            Err(failure) if kind.is_ours() => return Err(failure),
            Err(failure) => eprintln!("left out: {}: {failure}", kind.name()),
        }
    }
    Ok(prepared)
}

/// The members of `all` that a list of names chooses. Without a list, all.
fn chosen<T>(names: Option<String>, all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Vec<T>, Failure> {
    let Some(names) = names else { return Ok(all) };
    let names: Vec<_> = names.split(',').collect();
    if let Some(unknown) = names.iter().find(|wanted| all.iter().all(|it| name(it) != **wanted)) {
        return Err(Failure::new(format!("{unknown} is not known; see --help")));
    }
    Ok(all.into_iter().filter(|it| names.contains(&name(it))).collect())
}
