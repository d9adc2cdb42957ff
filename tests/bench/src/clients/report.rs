//! The lines with which the clients' process reports to the one that started it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    str::FromStr,
};

use crate::failure::{Context, Failure};

/// A report: its fields, and how they are written as a line and read from one.
macro_rules! report {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Default, PartialEq)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* }

        impl Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let fields = [$(format!(concat!(stringify!($field), "={}"), self.$field),)*];
                f.write_str(&fields.join(" "))
            }
        }

        impl FromStr for $name {
            type Err = Failure;

            fn from_str(line: &str) -> Result<Self, Failure> {
                let fields = Fields::new(line);
                Ok(Self { $($field: fields.get(stringify!($field))?,)* })
            }
        }
    };
}

report!(Connected {
    /// From the start of the first connection to the end of the last handshake.
    seconds: f64,
    /// Clients that get compressed messages.
    agreed: u64,
});

report!(
    /// One part of the messages.
    Part {
        deliveries: u64,
        p50_ms: f64,
        p99_ms: f64,
    }
);

report!(Asked {
    answers: u64,
    /// Answers without the expected text.
    wrong: u64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
});

report!(Received {
    /// Deliveries, without repeated messages.
    deliveries: u64,
    missed: u64,
    again: u64,
    late: u64,
    /// Clients that the server closed.
    closed: u64,
    /// From the first message's sending to the last delivery.
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    /// Bytes read from all sockets: frames with their headers.
    bytes: u64,
    /// Inflated bytes that were delivered. Only for a recording.
    payload_bytes: u64,
    /// Deliveries that came compressed.
    compressed: u64,
    /// Frames that were inflated and compared with the recording: the first frame of each message, and frames that
    /// differ from it.
    compared: u64,
});

report!(
    /// What happened to the clients that did not read, once they read again.
    Stalled {
        /// They got every message after all.
        complete: u64,
        /// They missed some, and are still connected.
        skipped: u64,
        /// They got a close frame with the code 1013.
        told: u64,
        /// They got another code, or the connection ended without one.
        cut: u64,
        /// Messages that came twice or out of order.
        mistakes: u64,
    }
);

report!(
    /// How many clients came back after all had been cut off at once, or came at once for the first time.
    Returned {
        back: u64,
        /// From the cut to the last client's last message. For clients that cannot resume, to the last handshake.
        seconds: f64,
        /// When half of the clients were back, counted in the same way.
        p50_seconds: f64,
        /// From the cut to the end of the last handshake.
        handshake_seconds: f64,
        /// Attempts that were answered with 503.
        busy: u64,
        /// Attempts that were refused, reset or ended without an answer.
        lost: u64,
        /// Attempts that got no answer in time.
        late: u64,
        /// Messages of both parts that never came.
        missed: u64,
        again: u64,
        out_of_order: u64,
        /// Clients that were closed after they were back.
        closed: u64,
    }
);

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
