//! What the clients' process tells the one that started it, each as a line.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    str::FromStr,
};

use crate::failure::{Context, Failure};

pub struct Connected {
    /// From the first connection's begin to the last handshake's end.
    pub seconds: f64,
}

#[derive(Debug, Default, PartialEq)]
pub struct Received {
    /// Without those that came again.
    pub deliveries: u64,
    pub missed: u64,
    pub again: u64,
    pub late: u64,
    /// Clients that the server has closed.
    pub closed: u64,
    /// From the first message's sending to the last delivery.
    pub seconds: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Display for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seconds={}", self.seconds)
    }
}

impl FromStr for Connected {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        Ok(Self { seconds: Fields::new(line).get("seconds")? })
    }
}

impl Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deliveries, missed, again, late, closed, seconds, p50_ms, p99_ms, p999_ms } = self;
        write!(f, "deliveries={deliveries} missed={missed} again={again} late={late} closed={closed} ")?;
        write!(f, "seconds={seconds} p50_ms={p50_ms} p99_ms={p99_ms} p999_ms={p999_ms}")
    }
}

impl FromStr for Received {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        let fields = Fields::new(line);
        Ok(Self {
            deliveries: fields.get("deliveries")?,
            missed: fields.get("missed")?,
            again: fields.get("again")?,
            late: fields.get("late")?,
            closed: fields.get("closed")?,
            seconds: fields.get("seconds")?,
            p50_ms: fields.get("p50_ms")?,
            p99_ms: fields.get("p99_ms")?,
            p999_ms: fields.get("p999_ms")?,
        })
    }
}

/// `name=value name=value`
struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn new(line: &'a str) -> Self {
        Self(line.split_whitespace().filter_map(|field| field.split_once('=')).collect())
    }

    fn get<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Failure> {
        self.0.get(name).context(format!("a report without {name}"))?.parse().context(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_line() {
        let received = Received { deliveries: 7, late: 2, p99_ms: 1.25, ..Received::default() };
        assert_eq!(received.to_string().parse::<Received>().unwrap(), received);
        assert!("deliveries=7".parse::<Received>().is_err());
    }
}
