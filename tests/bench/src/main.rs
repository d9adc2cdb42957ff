//! `bench`: what a delivery costs the relay, beside a bare server and its peers.
//!
//! A feed, a server and many clients, each a process of its own, on one machine; all but other people's servers are this
//! program. In the order data flows: `feed` plays messages that carry their number and time, `ceiling` (or another
//! server) passes them on, `clients` take them and check each, or ask and are answered; `run` starts all three, reads what
//! the server has used from `/proc`, and prints tables. A `recording` of a real feed takes the place of `message` where they
//! are compressed.

mod arguments;
mod failure;

mod clock;
mod frame;
mod handshake;
mod message;
mod recording;

mod feed;

mod ceiling;

mod clients;

mod run;

use std::process::ExitCode;

use arguments::Arguments;
use failure::Failure;

fn main() -> ExitCode {
    let mut arguments = Arguments::of_process();
    let outcome = match arguments.command().as_deref() {
        Some("feed") => feed::run(arguments),
        Some("ceiling") => ceiling::run(arguments),
        Some("clients") => clients::run(arguments),
        Some("ask") => clients::ask(arguments),
        Some("herd") => clients::herd(arguments),
        Some("leash") => run::leash(arguments),
        None => run::run(arguments),
        Some(other) => Err(Failure::new(format!("no command {other:?}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
