//! The compared servers take turns.

use std::fmt::Display;

use crate::failure::Failure;

/// The results of one server, or of anything else that is compared.
pub struct Row<K, S> {
    pub kind: K,
    /// `None`: the run failed.
    pub runs: Vec<Option<S>>,
}

impl<K, S> Row<K, S> {
    pub fn samples(&self) -> impl Iterator<Item = &S> {
        self.runs.iter().flatten()
    }

    pub fn failed(&self) -> usize {
        self.runs.iter().filter(|run| run.is_none()).count()
    }
}

/// Runs each once, then each again, so that whatever else the machine does affects them all. Each turn starts with
/// another one.
pub fn measure<K: Copy + Ord, S: Display>(
    scenario: &str,
    kinds: &[K],
    name: impl Fn(K) -> &'static str,
    runs: usize,
    take: impl Fn(K) -> Result<S, Failure>,
) -> Vec<Row<K, S>> {
    let mut rows: Vec<_> = kinds.iter().map(|kind| Row { kind: *kind, runs: Vec::new() }).collect();
    for run in 1..=runs {
        for row in &mut rows {
            let outcome = take(row.kind);
            let text = outcome.as_ref().map_or_else(|failure| format!("FAILED: {failure}"), S::to_string);
            eprintln!("{scenario} {run}/{runs} {}: {text}", name(row.kind));
            row.runs.push(outcome.ok());
        }
        let first = rows.len().min(1);
        rows.rotate_left(first);
    }
    rows.sort_by_key(|row| row.kind);
    rows
}
