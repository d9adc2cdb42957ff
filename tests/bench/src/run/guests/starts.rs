//! How soon code of each language is ready: after compiling, from the cache, and when its tenant was idle.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs,
};

use super::Guest;
use crate::{
    clients::Histogram,
    failure::{Context, Failure},
    run::{
        Outcome,
        languages::Language,
        life::{Life, Tenants, live},
        place::Place,
        process::Cores,
        table::{Column, table},
        turns::measure,
        visit::Visit,
    },
};

/// Tenants with the same code, so that it is compiled once and each first use is a first call.
const TENANTS: usize = 20;
const MEBIBYTE: f64 = (1 << 20) as f64;

struct Sample {
    /// Bytes of the component files, each counted once.
    wasm: u64,
    life: Life,
}

const COLUMNS: [Column<Language, Sample>; 9] = [
    Column::text("", |row| row.kind.name().to_owned()),
    Column::figure(".wasm, MiB", |sample| Some(sample.wasm as f64 / MEBIBYTE)),
    Column::figure("compiled, MiB", |sample| Some(sample.life.compiled as f64 / MEBIBYTE)),
    Column::figure("s to `listening`, nothing compiled", |sample| Some(sample.life.cold)),
    Column::figure("s, all compiled", |sample| Some(sample.life.warm)),
    Column::figure("MiB more with an instance of each role", |sample| {
        Some((sample.life.in_use.resident - sample.life.started.resident) / MEBIBYTE)
    }),
    Column::figure("idle tenant: a client let in, ms", |sample| Some(sample.p50_ms(|visit| visit.client))),
    Column::figure("a message filtered, ms", |sample| Some(sample.p50_ms(|visit| visit.filter))),
    Column::figure("a request answered, ms", |sample| Some(sample.p50_ms(|visit| visit.api))),
];

pub fn run(guests: &[Guest], runs: usize, place: &Place) -> Outcome {
    let languages: Vec<_> = guests.iter().map(|guest| guest.language).collect();
    let take = |language| take(guests.iter().find(|guest| guest.language == language), place);
    let rows = measure("guests starts", &languages, Language::name, runs, take);
    let text = format!(
        "Code, on all cores; times after idle are medians of {TENANTS} tenants with the same code, from a client's or a \
         request's connection on, from a message's sending behind the upstream's handshake:\n\n"
    );
    Outcome { text: text + &table(&COLUMNS, &rows, None), good: rows.iter().all(|row| row.failed() == 0) }
}

fn take(guest: Option<&Guest>, place: &Place) -> Result<Sample, Failure> {
    let components = &guest.context("no guest")?.components;
    let files: BTreeSet<_> = components.iter().map(|(_, file)| file).collect();
    let mut wasm = 0;
    for file in files {
        wasm += fs::metadata(file).context(file.display())?.len();
    }
    let tenants = Tenants { count: TENANTS, components, apart: false, again: TENANTS };
    Ok(Sample { wasm, life: live(&tenants, Cores::All, place)? })
}

impl Sample {
    /// The median of the uses after the tenants were idle, in ms.
    fn p50_ms(&self, of: fn(&Visit) -> u64) -> f64 {
        self.life.again.iter().map(of).collect::<Histogram>().quantile(0.5) as f64 / 1e6
    }
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Life { cold, warm, .. } = &self.life;
        let (client, filter, api) =
            (self.p50_ms(|visit| visit.client), self.p50_ms(|visit| visit.filter), self.p50_ms(|visit| visit.api));
        write!(f, "{cold:.2} s cold, {warm:.2} s warm; after idle {client:.2}, {filter:.2} and {api:.2} ms")
    }
}
