//! `edge-relay feed`: a partner to try out a relay with.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    command::{Failure, announce, io_runtime},
    entry, feed,
    feed::{FeedSource, Sent, recording},
    shutdown, telemetry,
};

/// Plays a partner: a WebSocket server that sends a recorded feed, or a simulated exchange.
///
/// Every connection gets the feed once, from its start, and then stays open. Prints `listening feed=ADDR` once it is
/// ready.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-relay feed --listen 127.0.0.1:9000
  edge-relay feed --listen 127.0.0.1:9000 --file session.jsonl --speed 10

A recording has one JSON object per line: {\"t\": SECONDS, \"from\": \"upstream\", \"text\": \"…\"}. A binary message
has \"base64\" instead of \"text\". Lines from \"relay\" are the subscriber's own messages, and are skipped.")]
pub struct Feed {
    /// Where the relay connects; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// A recording to play; without it, a simulated exchange.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How many times faster than recorded; 0 leaves out the pauses.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = not_negative, requires = "file")]
    speed: f64,
    /// Messages per second of the simulated exchange.
    #[arg(long, value_name = "N", default_value_t = 50.0, value_parser = positive, conflicts_with = "file")]
    rate: f64,
    /// Seconds between a connection's opening and the feed's start.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = not_negative)]
    start_after: f64,
}

impl Feed {
    pub fn run(self) -> Result<(), Failure> {
        telemetry::start("info").map_err(Failure::usage)?;
        let source = match &self.file {
            Some(file) => {
                let frames = recording::load(file).map_err(Failure::usage)?;
                FeedSource::Recording { frames, speed: self.speed }
            }
            None => FeedSource::Simulated { rate: self.rate },
        };
        let feed = feed::Feed { source, start_after: Duration::from_secs_f64(self.start_after) };
        io_runtime()?.block_on(async {
            let listener = entry::bind(self.listen, &[])
                .map_err(|error| Failure::failed(format!("cannot listen on {}: {error}", self.listen)))?;
            let address = listener.local_addr().map_err(Failure::failed)?;
            let (trigger, mut stop) = shutdown::stop();
            shutdown::without_notice(trigger).map_err(Failure::failed)?;
            announce(&format!("listening feed={address}"))?;
            tokio::select! {
                never = feed::serve(listener, feed, Sent::default()) => match never {},
                () = stop.wait() => Ok(()),
            }
        })
    }
}

/// Longest pause and fastest replay: a `Duration` and a timer can hold them with room to spare.
const MOST: f64 = 1e9;

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..=MOST).contains(&number) => Ok(number),
        _ => Err(format!("it must be a number from 0 to {MOST}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match not_negative(text) {
        Ok(number) if number > 0.0 => Ok(number),
        _ => Err(format!("it must be a number above 0, at most {MOST}")),
    }
}
