//! Markdown tables: medians, what they vary by, and ratios to the bare server.

use super::{
    Row,
    sample::{Delivery, Sample},
    scenario::Scenario,
    server::Kind,
};

struct Column {
    title: &'static str,
    value: fn(&Sample) -> Option<f64>,
    /// With a second column: the ratio to the bare server.
    ratio: bool,
}

const DELIVERIES: [Column; 6] = [
    column("deliveries/s", |sample| Some(delivery(sample)?.per_second)),
    with_ratio("CPU µs per delivery", |sample| Some(delivery(sample)?.cpu)),
    with_ratio("p50 ms", |sample| Some(delivery(sample)?.received.p50_ms)),
    with_ratio("p99 ms", |sample| Some(delivery(sample)?.received.p99_ms)),
    column("p99.9 ms", |sample| Some(delivery(sample)?.received.p999_ms)),
    column("clients' CPU µs", |sample| Some(delivery(sample)?.cpu_of_clients)),
];

const CONNECTIONS: [Column; 3] = [
    column("resident bytes per client", |sample| Some(sample.resident_per_client)),
    with_ratio("CPU µs per handshake", |sample| Some(sample.cpu_per_handshake)),
    column("handshakes/s", |sample| Some(sample.handshakes_per_second)),
];

const fn column(title: &'static str, value: fn(&Sample) -> Option<f64>) -> Column {
    Column { title, value, ratio: false }
}

const fn with_ratio(title: &'static str, value: fn(&Sample) -> Option<f64>) -> Column {
    Column { title, value, ratio: true }
}

fn delivery(sample: &Sample) -> Option<&Delivery> {
    sample.delivery.as_ref()
}

/// A scenario's heading and tables.
pub fn of(scenario: &Scenario, rows: &[Row]) -> String {
    let mut text = format!("### {}, {} clients\n\n", scenario.title, rounded(scenario.clients as f64));
    if scenario.messages > 0 {
        text += &table(rows, &DELIVERIES, Some(("messages", messages)), Some(("missed, again, late", mistakes)));
    }
    if scenario.connections {
        text += &table(rows, &CONNECTIONS, None, None);
    }
    text
}

type TextColumn = Option<(&'static str, fn(&Row) -> String)>;

fn table(rows: &[Row], columns: &[Column], first: TextColumn, last: TextColumn) -> String {
    let ratio = |column: &Column| column.ratio.then(|| "×".to_owned());
    let titles = columns.iter().flat_map(|column| [Some(column.title.to_owned()), ratio(column)]).flatten();
    let first_title = first.iter().map(|(title, _)| (*title).to_owned());
    let last_title = last.iter().map(|(title, _)| (*title).to_owned());
    let titles: Vec<_> = ["server".to_owned()].into_iter().chain(first_title).chain(titles).chain(last_title).collect();
    let mut text = line(&titles) + &line(&vec!["---".to_owned(); titles.len()]);
    let bare = rows.iter().find(|row| row.kind == Kind::Ceiling);
    for row in rows {
        let figures = columns.iter().flat_map(|column| {
            let values = values(row, column.value);
            let ratio = column.ratio.then(|| ratio_to(bare, row, column.value));
            [Some(with_spread(values)), ratio]
        });
        let first = first.iter().map(|(_, of)| of(row));
        let last = last.iter().map(|(_, of)| of(row));
        text += &line(&[name(row)].into_iter().chain(first).chain(figures.flatten()).chain(last).collect::<Vec<_>>());
    }
    text + "\n"
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn name(row: &Row) -> String {
    row.samples().next().map_or_else(|| row.kind.name().to_owned(), |sample| sample.version.clone())
}

fn messages(row: &Row) -> String {
    row.samples().find_map(|sample| Some(rounded(delivery(sample)?.messages.into()))).unwrap_or_default()
}

/// Of all runs together; anything but zeros makes the other figures worth nothing, so it stands out.
fn mistakes(row: &Row) -> String {
    let received: Vec<_> = row.samples().filter_map(delivery).map(|delivery| &delivery.received).collect();
    let missed: u64 = received.iter().map(|received| received.missed).sum();
    let again: u64 = received.iter().map(|received| received.again).sum();
    let late: u64 = received.iter().map(|received| received.late).sum();
    let closed: u64 = received.iter().map(|received| received.closed).sum();
    let failed = row.runs.iter().filter(|run| run.is_none()).count();
    let mut text = format!("{missed}, {again}, {late}");
    if closed > 0 {
        text += &format!("; {closed} clients closed");
    }
    if failed > 0 {
        text += &format!("; {failed} runs failed");
    }
    if row.is_good() { text } else { format!("**{text}**") }
}

fn values(row: &Row, value: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    row.samples().filter_map(value).collect()
}

fn ratio_to(bare: Option<&Row>, row: &Row, value: fn(&Sample) -> Option<f64>) -> String {
    let Some(bare) = bare else { return "–".to_owned() };
    let turns = bare.runs.iter().zip(&row.runs);
    let ratios = turns.filter_map(|(bare, it)| Some(value(it.as_ref()?)? / value(bare.as_ref()?)?));
    // A run too short for the clock's ticks has used no CPU.
    median(ratios.filter(|ratio| ratio.is_finite()).collect())
        .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn with_spread(values: Vec<f64>) -> String {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let one = values.len() == 1;
    match median(values) {
        None => "–".to_owned(),
        Some(median) if one => rounded(median),
        Some(median) => format!("{} ({}–{})", rounded(median), rounded(lowest), rounded(highest)),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let lower = if values.len().is_multiple_of(2) { *values.get(middle.checked_sub(1)?)? } else { upper };
    Some(f64::midpoint(lower, upper))
}

/// Three digits, or all those of a whole number, its thousands set apart.
fn rounded(value: f64) -> String {
    let decimals = match value.abs() {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    if value.abs() < 1000.0 || !value.is_finite() {
        return if value == value.trunc() { format!("{value:.0}") } else { text };
    }
    let digits = text.len();
    let apart = text.chars().enumerate().flat_map(|(nth, digit)| {
        let comma = nth > 0 && (digits - nth).is_multiple_of(3) && digit.is_ascii_digit();
        [comma.then_some(','), Some(digit)]
    });
    apart.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let numbers = [0.0, 0.04567, 1.0, 7.456, 45.67, 345.6, 1_000.0, 1_234_567.0, 20_000.4].map(rounded);
        assert_eq!(numbers, ["0", "0.046", "1", "7.46", "45.7", "346", "1,000", "1,234,567", "20,000"]);
    }

    #[test]
    fn medians_of_few() {
        assert_eq!(
            [vec![], vec![3.0], vec![4.0, 1.0], vec![9.0, 1.0, 2.0]].map(median),
            [None, Some(3.0), Some(2.5), Some(2.0)]
        );
        assert_eq!(with_spread(vec![9.0, 1.0, 2.5]), "2.50 (1–9)");
    }
}
