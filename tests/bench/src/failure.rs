//! Failures, as sentences: only people read them.

use std::fmt::{self, Display};

#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub trait Context<T> {
    /// Says what was being done when it failed.
    fn context(self, doing: impl Display) -> Result<T, Failure>;

    /// Like `context`, for a text that is costly to make.
    fn with_context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T, Failure>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T, Failure> {
        self.with_context(|| doing)
    }

    fn with_context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{}: {error}", doing())))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T, Failure> {
        self.with_context(|| doing)
    }

    fn with_context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T, Failure> {
        self.ok_or_else(|| Failure(doing().to_string()))
    }
}
