//! Many unused tenants: what they cost, and how soon one of them answers.

use std::fmt::{self, Display};

use super::{
    Outcome,
    languages::Language,
    life::{Level, Life, Tenants, live},
    place::Place,
    process::Cores,
    table::{Column, rounded, table},
    turns::{self, measure},
    visit::Visit,
};
use crate::{clients::Histogram, failure::Failure};

/// When each tenant has code of its own, there are this many times fewer tenants: each has three components to compile.
const FEWER: usize = 10;
/// How many tenants are used again after they were idle.
const AGAIN: usize = 200;
/// The number of tenants to compare with. The cost of a tenant is what the others add.
const ONE: usize = 1;

pub struct Scenario {
    pub tenants: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Same,
    Apart,
}

struct Sample {
    tenants: usize,
    one: Life,
    many: Life,
}

/// A first use of a tenant, and how long it was unused before.
#[derive(Clone, Copy)]
struct Wait {
    case: Case,
    after: &'static str,
    what: &'static str,
    of: fn(&Visit) -> u64,
    visits: fn(&Life) -> &[Visit],
}

type Row = turns::Row<Case, Sample>;

const COSTS: [Column<Case, Sample>; 9] = [
    Column::text("tenants", |row| row.samples().next().map(Sample::name).unwrap_or_default()),
    Column::figure("KiB per idle tenant at the start", |sample| Some(sample.per_tenant(|life| life.started.resident))),
    Column::figure("KiB per tenant idle again", |sample| Some(sample.per_tenant(|life| life.idle.resident))),
    Column::figure("KiB of mapped code per tenant idle again", |sample| {
        Some(sample.per_tenant(|life| life.idle.mapped))
    }),
    Column::figure("open files more than with one", |sample| Some(sample.more(|level| level.files))),
    Column::figure("threads", |sample| Some(sample.many.idle.threads as f64)),
    Column::figure("s to `listening`, nothing compiled", |sample| Some(sample.many.cold)),
    Column::figure("s, all compiled", |sample| Some(sample.many.warm)),
    Column::figure("s, one tenant, all compiled", |sample| Some(sample.one.warm)),
];

const WAITS: [Column<Wait, Histogram>; 5] = [
    Column::text("tenants", |row| row.kind.case.name().to_owned()),
    Column::text("the first use since", |row| format!("{}: {}", row.kind.after, row.kind.what)),
    Column::figure("p50 ms", |waits| Some(milliseconds(waits.quantile(0.5)))),
    Column::figure("p99 ms", |waits| Some(milliseconds(waits.quantile(0.99)))),
    Column::figure("longest ms", |waits| Some(milliseconds(waits.quantile(1.0)))),
];

pub fn run(scenario: &Scenario, runs: usize, place: &Place) -> Outcome {
    let rows = measure("density", &[Case::Same, Case::Apart], Case::name, runs, |case| take(scenario, case, place));
    let waits: Vec<_> = rows.iter().flat_map(|row| Wait::ALL.map(|wait| wait.of_row(row))).collect();
    let text = format!(
        "### Density: {} tenants that nobody uses\n\n\
         Each has a filter with an upstream on demand, a client handler and an API. Memory is anonymous memory more than \
         with one tenant, over the tenants more (budget 200 KiB); mapped code is pages of files, and beside it.\n\n",
        rounded(scenario.tenants as f64)
    );
    let text = text + &table(&COSTS, &rows, None) + "Budget of each first use since a tenant was idle: 10 ms.\n\n";
    Outcome { text: text + &table(&WAITS, &waits, None), good: rows.iter().all(|row| row.failed() == 0) }
}

fn take(scenario: &Scenario, case: Case, place: &Place) -> Result<Sample, Failure> {
    let components = Language::Rust.components(place)?;
    let (count, apart) = match case {
        Case::Same => (scenario.tenants, false),
        Case::Apart => (scenario.tenants.div_ceil(FEWER), true),
    };
    let live = |count, again| live(&Tenants { count, components: &components, apart, again }, Cores::All, place);
    Ok(Sample { tenants: count, one: live(ONE, ONE)?, many: live(count, AGAIN)? })
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Same => "the same code in all",
            Self::Apart => "each with code of its own",
        }
    }
}

impl Sample {
    fn name(&self) -> String {
        rounded(self.tenants as f64)
    }

    /// KiB per tenant.
    fn per_tenant(&self, of: fn(&Life) -> f64) -> f64 {
        let more = self.tenants.saturating_sub(ONE).max(1) as f64;
        (of(&self.many) - of(&self.one)) / more / 1024.0
    }

    fn more(&self, of: fn(&Level) -> usize) -> f64 {
        of(&self.many.idle) as f64 - of(&self.one.idle) as f64
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Life { cold, warm, .. } = &self.many;
        let (at_start, again) =
            (self.per_tenant(|life| life.started.resident), self.per_tenant(|life| life.idle.resident));
        write!(f, "{at_start:.1} KiB a tenant at the start, {again:.1} idle again; {cold:.2} s cold, {warm:.2} s warm")
    }
}

impl Wait {
    const ALL: [Self; 6] = [
        Self::new("the start", "a client let in", |visit| visit.client, |life| &life.first),
        Self::new("the start", "a message filtered", |visit| visit.filter, |life| &life.first),
        Self::new("the start", "a request answered", |visit| visit.api, |life| &life.first),
        Self::new("idle", "a client let in", |visit| visit.client, |life| &life.again),
        Self::new("idle", "a message filtered", |visit| visit.filter, |life| &life.again),
        Self::new("idle", "a request answered", |visit| visit.api, |life| &life.again),
    ];

    const fn new(
        after: &'static str,
        what: &'static str,
        of: fn(&Visit) -> u64,
        visits: fn(&Life) -> &[Visit],
    ) -> Self {
        Self { case: Case::Same, after, what, of, visits }
    }

    fn of_row(self, row: &Row) -> turns::Row<Self, Histogram> {
        let histogram = |sample: &Sample| (self.visits)(&sample.many).iter().map(self.of).collect();
        let runs = row.runs.iter().map(|run| run.as_ref().map(histogram)).collect();
        turns::Row { kind: Self { case: row.kind, ..self }, runs }
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
