//! Walks one configuration file. Keys are taken out of its tables, and every mistake is recorded with its line. Keys
//! that are left at the end are unknown.

use std::{
    cell::{Cell, RefCell},
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

/// Most mistakes of one manifest that are listed. The others are counted.
const MAX_PROBLEMS: usize = 50;

/// The most characters of a key or a value that a problem repeats.
pub(super) const MAX_QUOTED_CHARS: usize = 60;

/// The most characters of a dotted path of keys that a problem shows.
const MAX_KEY_CHARS: usize = 200;

/// One mistake: where it is, what it is, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1. `None`: the mistake concerns the whole file.
    pub line: Option<usize>,
    /// The key as a dotted path, such as `listen.clients`. Empty: there is none.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Every mistake found in every file, displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Quotes a file's value for a problem: escaped, and cut after [`MAX_QUOTED_CHARS`].
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// One file's text and the problems found in it so far.
pub(super) struct Document<'t> {
    file: &'t Path,
    text: &'t str,
    /// The offset after each line's end.
    ends: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    /// Most problems that are listed, and how many more there are.
    most: usize,
    unlisted: Cell<usize>,
}

impl<'t> Document<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(offset, _)| offset + 1).collect();
        Self { file, text, ends, problems: RefCell::default(), most: usize::MAX, unlisted: Cell::new(0) }
    }

    /// A tenant's file: its author may make as many mistakes as the file has bytes, and not all are listed.
    pub(super) fn of_tenant(file: &'t Path, text: &'t str) -> Self {
        Self { most: MAX_PROBLEMS, ..Self::new(file, text) }
    }

    /// Parses the text. `Err` has the part that could be read of a text with syntax errors. Only the first error of a
    /// line is recorded: the others on that line mostly follow from it.
    pub(super) fn parse<'d>(&'d self) -> Result<Table<'d>, Table<'d>> {
        let (root, mut errors) = DeTable::parse_recoverable(self.text);
        let clean = errors.is_empty();
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut last = None;
        for error in errors {
            let line = error.span().map(|span| self.line(span.start));
            if last != Some(line) {
                self.report(line, "", format!("is not TOML: {}", error.message()));
            }
            last = Some(line);
        }
        let place = Location { document: self, key: String::new(), at: None };
        let table = Table { place, entries: root.into_inner(), known: Vec::new() };
        if clean { Ok(table) } else { Err(table) }
    }

    /// Returns `value` if nothing was wrong, else the problems in the order of their lines.
    pub(super) fn conclude<T>(self, value: Option<T>) -> Result<T, Problems> {
        let mut problems = self.problems.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => {
                problems.sort_by_key(|problem| problem.line);
                let unlisted = self.unlisted.get();
                if unlisted > 0 {
                    let message = format!("has {unlisted} more mistakes, which are not listed");
                    problems.push(Problem { file: self.file.into(), line: None, key: String::new(), message });
                }
                Err(Problems(problems))
            }
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.ends.partition_point(|end| *end <= offset) + 1
    }

    fn report(&self, line: Option<usize>, key: &str, message: String) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() == self.most {
            return self.unlisted.update(|unlisted| unlisted + 1);
        }
        let key = key.chars().take(MAX_KEY_CHARS).collect();
        problems.push(Problem { file: self.file.into(), line, key, message });
    }
}

/// Where a table or a value stands.
#[derive(Clone)]
pub(super) struct Location<'d> {
    document: &'d Document<'d>,
    key: String,
    at: Option<usize>,
}

impl<'d> Location<'d> {
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.document.report(self.line(), &self.key, message.into());
    }

    pub(super) fn line(&self) -> Option<usize> {
        self.at.map(|offset| self.document.line(offset))
    }

    fn child(&self, key: &str, at: Option<usize>) -> Self {
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let mut path = self.key.clone();
        if !path.is_empty() {
            path.push('.');
        }
        if !key.is_empty() && key.len() <= MAX_QUOTED_CHARS && key.bytes().all(bare) {
            path.push_str(key);
        } else {
            path.push_str(&quote(key));
        }
        Self { document: self.document, key: path, at }
    }
}

/// A table whose keys are taken one by one; [`Table::finish`] then reports the others.
#[must_use = "unknown keys are reported by `finish`"]
pub(super) struct Table<'d> {
    pub(super) place: Location<'d>,
    entries: DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Table<'d> {
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        let value = self.entries.remove(key)?;
        Some(Value { place: self.place.child(key, Some(value.span().start)), value: value.into_inner() })
    }

    /// Reports a key that has another name now.
    pub(super) fn renamed(&mut self, old: &str, now: &str) {
        if let Some(value) = self.entries.remove(old) {
            self.place.child(old, Some(value.span().start)).problem(format!("is {now} now"));
        }
    }

    /// Takes a key that must be there. `example` is a line to write.
    pub(super) fn require(&mut self, key: &'static str, example: &str) -> Option<Value<'d>> {
        self.expect(key, example);
        self.take(key)
    }

    /// Reports a key that is not there.
    pub(super) fn expect(&self, key: &str, example: &str) {
        if !self.entries.contains_key(key) {
            self.place.child(key, self.place.at).problem(format!("is missing; write for example {example}"));
        }
    }

    /// Takes a table. It is empty if the key is absent or of another type.
    pub(super) fn section(&mut self, key: &'static str) -> Table<'d> {
        let place = self.place.child(key, None);
        let empty = Table { place, entries: DeTable::new(), known: Vec::new() };
        self.take(key).and_then(|value| value.table("a table")).unwrap_or(empty)
    }

    /// All keys and values in the file's order, for a table whose keys its writer chooses.
    pub(super) fn entries(self) -> impl Iterator<Item = (String, Value<'d>)> {
        let mut entries: Vec<_> = self.entries.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let place = self.place;
        entries.into_iter().map(move |(key, value)| {
            let place = place.child(key.get_ref(), Some(key.span().start));
            (key.into_inner().into_owned(), Value { place, value: value.into_inner() })
        })
    }

    /// Reports every key that was not taken.
    pub(super) fn finish(self) {
        for (key, _) in &self.entries {
            let name = key.get_ref();
            let message = match nearest(name, &self.known) {
                Some(known) => format!("unknown key; did you mean `{known}`?"),
                None => format!("unknown key; known here: {}", self.known.join(", ")),
            };
            self.place.child(name, Some(key.span().start)).problem(message);
        }
    }
}

/// A value and its place. The typed getters record a problem and return `None` for a value that does not fit.
pub(super) struct Value<'d> {
    pub(super) place: Location<'d>,
    pub(super) value: DeValue<'d>,
}

impl<'d> Value<'d> {
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.place.problem(message);
    }

    /// Records that the value is of a wrong type; `wanted` follows "must be".
    pub(super) fn mismatch(&self, wanted: &str) {
        let found = match &self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.problem(format!("must be {wanted}, not {found}"));
    }

    pub(super) fn str(&self) -> Option<&str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.mismatch("a string in quotes");
        }
        text
    }

    pub(super) fn flag(&self) -> Option<bool> {
        let flag = self.value.as_bool();
        if flag.is_none() {
            self.mismatch("true or false");
        }
        flag
    }

    pub(super) fn table(self, wanted: &str) -> Option<Table<'d>> {
        match self.value {
            DeValue::Table(entries) => Some(Table { place: self.place, entries, known: Vec::new() }),
            _ => {
                self.mismatch(wanted);
                None
            }
        }
    }

    pub(super) fn array(self, wanted: &str) -> Option<Vec<Value<'d>>> {
        match self.value {
            DeValue::Array(items) => {
                let place = |at| Location { at: Some(at), ..self.place.clone() };
                let value =
                    |item: toml::Spanned<_>| Value { place: place(item.span().start), value: item.into_inner() };
                Some(items.into_iter().map(value).collect())
            }
            _ => {
                self.mismatch(wanted);
                None
            }
        }
    }
}

/// The known key that is nearest to `key`, at most a third of its own length away.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .filter(|known| key.len() <= 2 * known.len())
        .map(|known| (distance(key, known), (known.len() / 3).max(1), *known))
        .filter(|(distance, most, _)| distance <= most)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., known)| known)
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let cell = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX);
    let mut above: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.chars().count()).collect();
    let mut before_left = None;
    for (line, left) in a.chars().enumerate() {
        let mut row = vec![line + 1];
        let mut before_right = None;
        for (column, right) in b.chars().enumerate() {
            let mut cost = cell(&last, column).saturating_add(usize::from(left != right));
            cost = cost.min(cell(&last, column + 1).saturating_add(1)).min(cell(&row, column).saturating_add(1));
            if before_left == Some(right) && before_right == Some(left) {
                cost = cost.min(cell(&above, column.saturating_sub(1)).saturating_add(1));
            }
            row.push(cost);
            before_right = Some(right);
        }
        above = std::mem::replace(&mut last, row);
        before_left = Some(left);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The problems of `walk` over `text`, a file named `f.toml`. A text with syntax errors is not walked.
    pub(crate) fn problems(text: &str, walk: impl FnOnce(Table<'_>)) -> Vec<String> {
        let document = Document::new(Path::new("f.toml"), text);
        match document.parse() {
            Ok(root) => walk(root),
            Err(_) => drop(walk),
        }
        document.conclude::<()>(None).unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_keys_in_every_table() {
        let found = problems("clents = 1\n\n[listen]\nadmin = 1\n\"odd\\nkey\" = 2\nzzz = 3\n", |mut root| {
            root.take("clients");
            let mut listen = root.section("listen");
            listen.take("admin");
            listen.take("clients");
            listen.finish();
            root.finish();
        });
        let expected = [
            "f.toml:1: clents: unknown key; did you mean `clients`?",
            "f.toml:5: listen.\"odd\\nkey\": unknown key; known here: admin, clients",
            "f.toml:6: listen.zzz: unknown key; known here: admin, clients",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn several_syntax_errors() {
        let text = "a = 'x\nb = 1\nb = 2\nc = 1979-99\nd = [1 2, 3]\ne = nope\n";
        let lines = problems(text, |root| root.finish());
        let starts = ["f.toml:1: is not TOML: ", "f.toml:3: ", "f.toml:4: ", "f.toml:5: ", "f.toml:6: "];
        assert_eq!(lines.len(), starts.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{lines:#?}");
        }
    }

    #[test]
    fn wrong_types() {
        let found = problems("a = 1\nb = 'x'\nc = []\nd = 1979-05-27\ne = 1.5\nf = true\n", |mut root| {
            assert!(root.take("a").unwrap().str().is_none());
            assert!(root.take("b").unwrap().array("an array").is_none());
            assert!(root.take("c").unwrap().table("a table").is_none());
            assert!(root.take("d").unwrap().str().is_none());
            assert!(root.take("e").unwrap().str().is_none());
            assert!(root.take("f").unwrap().str().is_none());
            assert!(root.take("g").is_none());
            assert!(root.require("h", "h = 1").is_none());
        });
        let expected = [
            "f.toml: h: is missing; write for example h = 1",
            "f.toml:1: a: must be a string in quotes, not an integer",
            "f.toml:2: b: must be an array, not a string",
            "f.toml:3: c: must be a table, not an array",
            "f.toml:4: d: must be a string in quotes, not a date or time",
            "f.toml:5: e: must be a string in quotes, not a float",
            "f.toml:6: f: must be a string in quotes, not a boolean",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn entries_keep_the_files_order() {
        let document = Document::new(Path::new("f.toml"), "z = 1\n'a' = 2\nm = 3\n");
        let Ok(root) = document.parse() else { unreachable!() };
        let keys: Vec<_> = root.entries().map(|(key, value)| (key, value.place.line().unwrap())).collect();
        assert_eq!(keys, [("z".into(), 1), ("a".into(), 2), ("m".into(), 3)]);
    }

    #[test]
    fn what_is_near() {
        let known = ["clients", "name", "idle-timeout"];
        assert_eq!(nearest("idle_timeout", &known), Some("idle-timeout"));
        assert_eq!(nearest("client", &known), Some("clients"));
        assert_eq!(nearest("nam", &known), Some("name"));
        assert_eq!(nearest("url", &known), None);
        assert_eq!(nearest("", &known), None);
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("same", "same", 0)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn quotes_are_escaped_and_short() {
        assert_eq!(quote("a\u{1b}\"b"), r#""a\u{1b}\"b""#);
        assert!(quote(&"é".repeat(1 << 20)).len() < 4 * MAX_QUOTED_CHARS);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_bounded(a in "\\PC{0,12}", b in "\\PC{0,12}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.chars().count().max(b.chars().count()));
        }
    }
}
