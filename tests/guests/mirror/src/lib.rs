//! Sends what its upstreams bring back to them, as the Autobahn TestSuite wants of a client
//! (<https://github.com/crossbario/autobahn-testsuite>).
//!
//! The upstream `count` asks the suite how many cases there are, and in the end for the reports. Each connection of the
//! others is the next case.
#![allow(unsafe_code)] // Only what `export!` expands to.

use edge_relay::tenant::{
    types::{Connection, Frame, Output},
    upstreams::{self, Error, SendOptions},
};
use exports::edge_relay::tenant::{
    dialer::{self, Attempt, Credentials},
    filter,
};
use wasi::keyvalue::{
    atomics,
    store::{self, Bucket},
};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:mirror/mirror",
    generate_all,
});

const AGENT: &str = "agent=relay";
const COUNT: &str = "count";

struct Mirror;
export!(Mirror);

impl dialer::Guest for Mirror {
    fn dial(attempt: Attempt) -> Result<Credentials, String> {
        let numbers = store::open("default").map_err(|error| format!("{error:?}"))?;
        let (count, ended) = (number(&numbers, "count"), number(&numbers, "ended"));
        let target = match (&*attempt.upstream, count) {
            (COUNT, 0) => "/getCaseCount".to_owned(),
            (COUNT, _) if ended < count => return Err(format!("{ended} of {count} cases")),
            (COUNT, _) => format!("/updateReports?{AGENT}"),
            (_, 0) => return Err("not counted yet".to_owned()),
            _ => match atomics::increment(&numbers, "next", 1) {
                Ok(case) if case <= count => format!("/runCase?case={case}&{AGENT}"),
                _ => return Err("there are no more cases".to_owned()),
            },
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(Credentials { path: Some(path.to_owned()), query: Some(query.to_owned()), headers: Vec::new() })
    }
}

impl filter::Guest for Mirror {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        Vec::new()
    }

    fn on_frames(upstream: String, connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        if upstream == COUNT {
            if let Some(Frame::Text(count)) = frames.first()
                && let Ok(numbers) = store::open("default")
            {
                let _ = atomics::increment(&numbers, "count", count.parse().unwrap_or_default());
            }
            return Vec::new();
        }
        let options = SendOptions { connection: Some(connection), first: false };
        for frame in frames {
            // Until the connection has taken some.
            while upstreams::send(&upstream, std::slice::from_ref(&frame), options) == Err(Error::Full) {}
        }
        Vec::new()
    }

    fn on_close(upstream: String, _connection: u64, _reason: String) -> Vec<Output> {
        if upstream != COUNT
            && let Ok(numbers) = store::open("default")
        {
            let _ = atomics::increment(&numbers, "ended", 1);
        }
        Vec::new()
    }
}

/// A number that `wasi:keyvalue/atomics` keeps: without the interface's own way to read it.
fn number(numbers: &Bucket, name: &str) -> u64 {
    atomics::increment(numbers, name, 0).unwrap_or_default()
}
