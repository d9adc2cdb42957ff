//! Plays messages to clients, with every server in turn, and prints the tables.

use super::{
    Outcome,
    place::Place,
    sample::{self, Delivery, Sample, is_exact},
    scenario::Scenario,
    server::Kind,
    table::{Column, rounded, table, zeros},
    turns::{self, measure},
};

type Row = turns::Row<Kind, Sample>;

const DELIVERIES: [Column<Kind, Sample>; 9] = [
    Column::text("server", name),
    Column::text("messages", messages),
    Column::figure("deliveries/s", |sample| Some(delivery(sample)?.per_second)),
    Column::with_ratio("CPU µs per delivery", |sample| Some(delivery(sample)?.cpu)),
    Column::with_ratio("p50 ms", |sample| Some(delivery(sample)?.received.p50_ms)),
    Column::with_ratio("p99 ms", |sample| Some(delivery(sample)?.received.p99_ms)),
    Column::figure("p99.9 ms", |sample| Some(delivery(sample)?.received.p999_ms)),
    Column::figure("clients' CPU µs", |sample| Some(delivery(sample)?.cpu_of_clients)),
    Column::text("missed, again, late", mistakes),
];

const CONNECTIONS: [Column<Kind, Sample>; 4] = [
    Column::text("server", name),
    Column::figure("resident bytes per client", |sample| Some(sample.resident_per_client)),
    Column::with_ratio("CPU µs per handshake", |sample| Some(sample.cpu_per_handshake)),
    Column::figure("handshakes/s", |sample| Some(sample.handshakes_per_second)),
];

pub fn run(scenario: &Scenario, kinds: &[Kind], runs: usize, place: &Place) -> Outcome {
    let rows = measure(scenario.name, kinds, Kind::name, runs, |kind| sample::take(scenario, kind, place));
    let bare = rows.iter().find(|row| row.kind == Kind::Ceiling);
    let mut text = format!("### {}, {} clients\n\n", scenario.title, rounded(scenario.clients as f64));
    if scenario.messages > 0 {
        text += &table(&DELIVERIES, &rows, bare);
    }
    if scenario.connections {
        text += &table(&CONNECTIONS, &rows, bare);
    }
    Outcome { text, good: rows.iter().filter(|row| row.kind.is_ours()).all(is_good) }
}

fn is_good(row: &Row) -> bool {
    row.failed() == 0
        && row.samples().all(|sample| delivery(sample).is_none_or(|delivery| is_exact(&delivery.received)))
}

fn delivery(sample: &Sample) -> Option<&Delivery> {
    sample.delivery.as_ref()
}

fn name(row: &Row) -> String {
    row.samples().next().map_or_else(|| row.kind.name().to_owned(), |sample| sample.version.clone())
}

fn messages(row: &Row) -> String {
    row.samples().find_map(|sample| Some(rounded(delivery(sample)?.messages.into()))).unwrap_or_default()
}

/// All runs together. Anything but zeros makes the other figures worthless.
fn mistakes(row: &Row) -> String {
    let received = row.samples().filter_map(delivery).map(|delivery| &delivery.received);
    zeros(sample::mistakes(received, row.failed()), is_good(row))
}
