//! A filter that misbehaves as its setting `mode` says: see [`Guest::on_frames`] below.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{hint::black_box, process::abort};

use edge_relay::tenant::types::{Connection, Frame, Output, Publication};
use exports::edge_relay::tenant::filter::Guest;
use wasi::{
    cli::stderr::get_stderr,
    clocks::monotonic_clock,
    config::store,
    logging::logging::{Level, log},
};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:hostile/hostile",
    generate_all,
});

const CHANNEL: &str = "out";
const HUGE_CHANNEL_BYTES: usize = 1 << 20;
/// The most bytes that one `blocking-write-and-flush` takes.
const WRITE_BYTES: usize = 4096;

struct Hostile;
export!(Hostile);

impl Guest for Hostile {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        if setting("mode") == "trap-open" {
            abort(); // In WASM: `unreachable`, a trap.
        }
        Vec::new()
    }

    fn on_frames(_upstream: String, _connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        let mut publications = Vec::new();
        match setting("mode").as_str() {
            "trap" => abort(),
            "trap-on" if any_matches(&frames) => abort(),
            "loop" => loop_for_ever(),
            "loop-on" if any_matches(&frames) => loop_for_ever(),
            "memory" => allocate_for_ever(),
            "huge-channel" => publications.push(publication("x".repeat(HUGE_CHANNEL_BYTES), text(""))),
            "stderr" => frames.iter().for_each(report),
            "last-words" => {
                frames.iter().for_each(report);
                if any_matches(&frames) {
                    abort();
                }
            }
            "report-and-loop" => {
                frames.iter().for_each(report);
                loop_for_ever();
            }
            "slow" => stay_busy(),
            "echo" | "trap-on" | "loop-on" | "trap-open" => {}
            mode => {
                log(Level::Error, "hostile", &format!("unknown mode `{mode}`"));
                abort();
            }
        }
        publications.extend(frames.into_iter().map(|frame| publication(CHANNEL.to_owned(), frame)));
        publications.into_iter().map(Output::Publish).collect()
    }

    fn on_close(_upstream: String, _connection: u64, reason: String) -> Vec<Output> {
        vec![Output::Publish(publication(CHANNEL.to_owned(), text(&format!("closed: {reason}"))))]
    }
}

/// The value of a setting. Without one it is empty.
fn setting(name: &str) -> String {
    store::get(name).ok().flatten().unwrap_or_default()
}

/// Whether a text frame contains the setting `match`.
fn any_matches(frames: &[Frame]) -> bool {
    let wanted = setting("match");
    frames.iter().any(|frame| matches!(frame, Frame::Text(text) if text.contains(&wanted)))
}

#[inline(never)] // It has a name in backtraces.
fn loop_for_ever() -> ! {
    loop {
        black_box(());
    }
}

fn allocate_for_ever() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Writes the frame to stderr as a line, and to the log.
fn report(frame: &Frame) {
    let bytes = match frame {
        Frame::Text(text) => text.as_bytes(),
        Frame::Binary(bytes) => bytes,
    };
    let stderr = get_stderr();
    for part in bytes.chunks(WRITE_BYTES).chain([&b"\n"[..]]) {
        if stderr.blocking_write_and_flush(part).is_err() {
            log(Level::Error, "hostile", "stderr is closed");
        }
    }
    log(Level::Info, "hostile", &String::from_utf8_lossy(bytes));
}

/// Keeps the processor busy for `busy-ms` milliseconds.
fn stay_busy() {
    let busy: u64 = setting("busy-ms").parse().unwrap_or_default();
    let end = monotonic_clock::now() + busy * 1_000_000;
    while monotonic_clock::now() < end {}
}

fn text(text: &str) -> Frame {
    Frame::Text(text.to_owned())
}

fn publication(channel: String, data: Frame) -> Publication {
    Publication { channel, key: None, data, remove: false, id: None, at: None }
}
