//! `bench`: measures what a delivery costs the relay, compared with a bare server and its peers.
//!
//! A feed, a server and many clients are processes of their own on one machine. All but other projects' servers are
//! this program. In the order of the data: `feed` plays messages that carry their number and time, `ceiling` (or
//! another server) passes them on, and `clients` take and check each, or ask and are answered. `run` starts all three,
//! reads from `/proc` what the server has used, and prints tables. A `recording` of a real feed replaces the messages
//! of `message` where they are compressed.

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
        Some("crowd") => clients::crowd(arguments),
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
