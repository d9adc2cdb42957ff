//! Markdown tables: medians with their range, and ratios to one of the rows.

use super::turns::Row;

pub struct Column<K, S> {
    title: &'static str,
    cell: Cell<K, S>,
}

enum Cell<K, S> {
    /// A median. If the flag is set, a second column has its ratio to the first row's.
    Figure(fn(&S) -> Option<f64>, bool),
    /// A text about all runs together.
    Text(fn(&Row<K, S>) -> String),
}

impl<K, S> Column<K, S> {
    pub const fn figure(title: &'static str, value: fn(&S) -> Option<f64>) -> Self {
        Self { title, cell: Cell::Figure(value, false) }
    }

    pub const fn with_ratio(title: &'static str, value: fn(&S) -> Option<f64>) -> Self {
        Self { title, cell: Cell::Figure(value, true) }
    }

    pub const fn text(title: &'static str, text: fn(&Row<K, S>) -> String) -> Self {
        Self { title, cell: Cell::Text(text) }
    }

    fn titles(&self) -> Vec<String> {
        match self.cell {
            Cell::Figure(_, true) => vec![self.title.to_owned(), "×".to_owned()],
            Cell::Figure(_, false) | Cell::Text(_) => vec![self.title.to_owned()],
        }
    }

    fn cells(&self, row: &Row<K, S>, base: Option<&Row<K, S>>) -> Vec<String> {
        match self.cell {
            Cell::Text(text) => vec![text(row)],
            Cell::Figure(value, ratio) => {
                let figure = with_spread(row.samples().filter_map(value).collect());
                if ratio { vec![figure, ratio_to(base, row, value)] } else { vec![figure] }
            }
        }
    }
}

/// A table. Ratios are to `base`.
pub fn table<K, S>(columns: &[Column<K, S>], rows: &[Row<K, S>], base: Option<&Row<K, S>>) -> String {
    let titles: Vec<_> = columns.iter().flat_map(Column::titles).collect();
    let mut text = line(&titles) + &line(&vec!["---".to_owned(); titles.len()]);
    for row in rows {
        text += &line(&columns.iter().flat_map(|column| column.cells(row, base)).collect::<Vec<_>>());
    }
    text + "\n"
}

/// Marks figures that should be zeros if they are not.
pub fn zeros(text: String, good: bool) -> String {
    if good { text } else { format!("**{text}**") }
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn ratio_to<K, S>(base: Option<&Row<K, S>>, row: &Row<K, S>, value: fn(&S) -> Option<f64>) -> String {
    let Some(base) = base else { return "–".to_owned() };
    let turns = base.runs.iter().zip(&row.runs);
    let ratios = turns.filter_map(|(base, it)| Some(value(it.as_ref()?)? / value(base.as_ref()?)?));
    // A run that is too short for the clock's ticks has used no CPU.
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

/// Three digits, or all digits of a whole number, with its thousands set apart.
pub fn rounded(value: f64) -> String {
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
