//! Many clients in one thread: they take everything at once, check each message, and cost far less than the server.
//!
//! `bench clients ADDRESS/PATH --clients N --window N --messages N [--parts N] [--stalled N] [--door DOOR]
//! [--recording FILE [--compressed]]`
//!
//! Prints `connected` with what connecting took. Once all messages are there, or nothing has come for a while, it
//! prints `received` with a report. If the messages come in several equal `parts`, a line for each part comes first.
//! The sockets stay open to the end. Clients that are stalled do not read until then; after a line on standard input
//! they do, and `stalled` says what became of them. They come by the door `websocket` unless another is named: `sse` or
//! `centrifuge`. With a recording, the clients expect its messages, with `--compressed` also compressed ones.
//!
//! `bench ask`: clients that ask and are answered (`ask.rs`).
//! `bench herd`: clients that are all cut off at once and reconnect (`herd.rs`).
//! `bench crowd`: clients that all connect at once (`herd.rs`).

mod ask;
mod centrifuge;
mod connect;
mod door;
mod events;
mod herd;
mod histogram;
mod order;
mod position;
mod receive;
mod recorded;
mod report;
mod stall;

pub use ask::run as ask;
pub use door::Door;
pub use herd::{crowd, run as herd};
pub use histogram::Histogram;
pub use report::{Asked, Connected, Part, Received, Returned, Stalled};

use std::{io, path::PathBuf};

use mio::Poll;

use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
    recording::Recording,
};
use receive::Receiver;

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let count = arguments.option("--clients")?.unwrap_or(1);
    let window = arguments.option("--window")?.unwrap_or(1);
    let messages = arguments.option("--messages")?.unwrap_or(0);
    let parts = arguments.option("--parts")?.unwrap_or(1);
    let stalled = arguments.option("--stalled")?.unwrap_or(0);
    let recording = arguments.option("--recording")?.map(|file: PathBuf| Recording::read(&file)).transpose()?;
    let compressed = arguments.flag("--compressed");
    let door: Door = arguments.option("--door")?.unwrap_or_default();
    let target = connect::Target::new(&arguments.word::<String>("an address with a path")?)?;
    let target = target.compressed(compressed).with_door(door);
    arguments.end()?;

    let mut poll = Poll::new().context("epoll")?;
    let (mut clients, connected) = connect::connect(&mut poll, &target, count, window)?;
    println!("connected {connected}");
    if messages > 0 {
        stall::stall(&mut clients, stalled);
        let receiver = match recording {
            Some(recording) => Receiver::of_recording(messages, recording),
            None => Receiver::new(messages).in_parts(parts),
        };
        let (received, parts) = receive::receive(&mut poll, &mut clients, receiver)?;
        parts.iter().for_each(|part| println!("part {part}"));
        println!("received {received}");
    }
    if stalled > 0 {
        wait()?;
        println!("stalled {}", stall::read_again(&mut poll, &mut clients, messages)?);
    }
    wait()
}

/// Waits for a line on standard input.
fn wait() -> Result<(), Failure> {
    let _ = io::stdin().read_line(&mut String::new()).context("standard input")?;
    Ok(())
}
