//! Runs every server in every scenario, in turn, and prints what each has cost.

mod machine;
mod place;
mod process;
mod sample;
mod scenario;
mod server;
mod table;

pub use process::leash;

use std::{env, path::PathBuf};

use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
};
use place::Place;
use sample::{Delivery, Sample, take};
use scenario::Scenario;
use server::Kind;

const HELP: &str = "\
What a delivery costs the relay, beside a bare server and its peers. Prints Markdown; goes on about each run on standard error.

  --only A,B      scenarios (flood, bursts, paced, many, idle); all by default
  --servers A,B   servers (ceiling, pass, market, bun, ws, nchan); all that are there by default
  --runs N        of each server in each scenario, the servers in turn (3)
  --clients N     in place of the scenarios' own 1,000 and 10,000
  --seconds N     how long messages are played where they are paced; the flood has 2,500 for each (8)
  --relay PATH    the relay's program; by default `edge-relay` beside this one

The peers are installed by `.ci/setup bench`, into $BENCH_TOOLS. The exit code is 1 if the relay has lost, repeated or
reordered a message.
";

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    if arguments.flag("--help") {
        print!("{HELP}");
        return Ok(());
    }
    let runs: usize = arguments.option("--runs")?.unwrap_or(3);
    let clients: Option<usize> = arguments.option("--clients")?;
    let seconds: u32 = arguments.option("--seconds")?.unwrap_or(8);
    let scenarios = chosen(arguments.option("--only")?, scenario::all(clients, seconds), |scenario| scenario.name)?;
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
        let rows = measure(scenario, &kinds, runs, &place);
        print!("{}", table::of(scenario, &rows));
        good &= rows.iter().filter(|row| row.kind.is_ours()).all(Row::is_good);
    }
    good.then_some(()).context("the relay has failed, or not every message came once and in order")
}

/// What one server has done in a scenario.
struct Row {
    kind: Kind,
    /// `None`: that run failed.
    runs: Vec<Option<Sample>>,
}

impl Row {
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.runs.iter().flatten()
    }

    fn is_good(&self) -> bool {
        let exact = |sample: &Sample| sample.delivery.as_ref().is_none_or(Delivery::is_exact);
        self.runs.iter().all(|run| run.as_ref().is_some_and(exact))
    }
}

/// Every server once, then every server again: what the machine does besides meets them all. Each turn begins with
/// another server.
fn measure(scenario: &Scenario, kinds: &[Kind], runs: usize, place: &Place) -> Vec<Row> {
    let mut rows: Vec<_> = kinds.iter().map(|kind| Row { kind: *kind, runs: Vec::new() }).collect();
    for run in 1..=runs {
        for row in &mut rows {
            let outcome = take(scenario, row.kind, place);
            let text = outcome.as_ref().map_or_else(|failure| format!("FAILED: {failure}"), Sample::to_string);
            eprintln!("{} {run}/{runs} {}: {text}", scenario.name, row.kind.name());
            row.runs.push(outcome.ok());
        }
        let first = rows.len().min(1);
        rows.rotate_left(first);
    }
    rows.sort_by_key(|row| row.kind);
    rows
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
