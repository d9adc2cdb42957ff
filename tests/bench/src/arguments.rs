//! The command line: `[COMMAND] [--name value]… [WORD]…`.

use std::{fmt::Display, str::FromStr};

use crate::failure::{Context, Failure};

pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn of_process() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    /// The first argument, unless it is an option.
    pub fn command(&mut self) -> Option<String> {
        self.0.first().is_some_and(|first| !first.starts_with("--")).then(|| self.0.remove(0))
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|argument| argument == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    /// The value that follows `name`, if `name` is there.
    pub fn option<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let Some(at) = self.0.iter().position(|argument| argument == name) else { return Ok(None) };
        let value = self.0.drain(at..self.0.len().min(at + 2)).nth(1).context(format!("{name} needs a value"))?;
        value.parse().context(format!("{name} {value}")).map(Some)
    }

    /// The next argument, which must be there.
    pub fn word<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, Failure> {
        if self.0.is_empty() {
            return Err(Failure::new(format!("{name} is missing")));
        }
        let word = self.0.remove(0);
        word.parse().context(format!("{name} {word}"))
    }

    /// The arguments that were not asked for.
    pub fn rest(self) -> Vec<String> {
        self.0
    }

    /// Refuses arguments that are left.
    pub fn end(self) -> Result<(), Failure> {
        match self.0.first() {
            None => Ok(()),
            Some(unknown) => Err(Failure::new(format!("{unknown} is not known; see --help"))),
        }
    }
}
