//! Runs every server in every scenario, in turn, and prints what each has cost; in some, the relay's tenants.

mod compressed;
mod deliveries;
mod density;
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
What a delivery costs the relay, beside a bare server and its peers. Prints Markdown; goes on about each run on standard error.

  --only A,B      scenarios (flood, bursts, paced, many, idle, slow, herd, compressed, density, guests, neighbours); all by
                  default
  --servers A,B   servers (ceiling, pass, market, bun, ws, nchan); all that are there by default; slow and those from density
                  on have their own; pass, bun and nchan are, in compressed, the relay, Bun and Nchan, each with compression
                  and without
  --runs N        of each server in each scenario, the servers in turn (3)
  --clients N     in place of the scenarios' own 1,000, 5,000 and 10,000
  --seconds N     how long messages are played where they are paced; the flood has 2,500 for each (8, slow 30); of each
                  window of neighbours (2)
  --tenants N     in place of density's 1,000
  --recording FILE  the feed whose messages `compressed` plays (../shared/feeds/coinbase.frames.jsonl), without which it is
                  left out
  --relay PATH    the relay's program; by default `edge-relay` beside this one

The peers are installed by `.ci/setup bench`, into $BENCH_TOOLS, and the guests' toolchains, into $LANGUAGE_TOOLS. The exit
code is 1 if the relay has lost, repeated or reordered a message, or has not done what a scenario asks.
";

/// No part of the project; beside a clone that has it.
const RECORDING: &str = "../shared/feeds/coinbase.frames.jsonl";
const SECONDS: u32 = 8;
/// The kernel takes 4 MB for a client that stalls, and then its log has to run over.
const SLOW_SECONDS: u32 = 30;
/// Of 14 windows for each of nine attacks.
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
}

/// What a scenario has come to.
struct Outcome {
    /// Its heading and tables.
    text: String,
    /// The relay has done all that it should.
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
    let others = [
        Scenario::Slow(slow),
        Scenario::Herd(herd),
        Scenario::Compressed(compressed),
        Scenario::Density(density::Scenario { tenants: tenants.unwrap_or(1_000) }),
        Scenario::Guests(guests::Scenario { seconds: seconds.unwrap_or(SECONDS) }),
        Scenario::Neighbours(neighbours),
    ];
    played.chain(others).collect()
}

/// The file, absolute: the feed runs elsewhere. One that was named must be there.
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

/// Those of `all` that a list of names chooses; without one, all.
fn chosen<T>(names: Option<String>, all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Vec<T>, Failure> {
    let Some(names) = names else { return Ok(all) };
    let names: Vec<_> = names.split(',').collect();
    if let Some(unknown) = names.iter().find(|wanted| all.iter().all(|it| name(it) != **wanted)) {
        return Err(Failure::new(format!("there is no {unknown}; see --help")));
    }
    Ok(all.into_iter().filter(|it| names.contains(&name(it))).collect())
}
