//! What an upstream is doing, in the words that `/readyz`, components and metrics share.

use tokio::time::Instant;

/// Exactly one of these at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody needs it.
    Resting,
    /// It is being opened, or waits until it may be.
    Connecting,
    /// Connected.
    Live,
    /// Connected, but a message is overdue.
    Stale,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Resting, Self::Connecting, Self::Live, Self::Stale];

    pub fn name(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Connecting => "connecting",
            Self::Live => "live",
            Self::Stale => "stale",
        }
    }
}

/// In how many milliseconds a time is.
pub fn millis_until(time: Instant) -> u64 {
    u64::try_from(time.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)
}

/// A state, and why it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// For people. `None`: there is nothing to say.
    pub reason: Option<String>,
    /// When it is tried again, if it waits for that.
    pub until: Option<Instant>,
}

impl Status {
    pub fn new(state: State) -> Self {
        Self { state, reason: None, until: None }
    }

    pub fn because(state: State, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::new(state) }
    }
}
