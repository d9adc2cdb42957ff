//! A client's place in a channel.

use std::{fmt, io::Write, num::ParseIntError, str::FromStr};

/// The identity of one unbroken run of a channel's offsets. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A publication's place in its channel. A client at this position has everything up to it, that publication included.
/// Written as `EPOCH:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: Epoch,
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

impl Position {
    /// Appends the position's text.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{self}");
    }
}

/// A text that is not a position. Positions are written as `EPOCH:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (epoch, offset) = text.split_once(':').ok_or(NotAPosition)?;
        let (epoch, offset) = (epoch.parse().map_err(|_| NotAPosition)?, offset.parse().map_err(|_| NotAPosition)?);
        Ok(Self { epoch, offset })
    }
}
