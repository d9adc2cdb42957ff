//! A filter that tells its upstream which channels are active and idle, and misbehaves for some of their names. It
//! publishes the upstream's frames on channel `out`.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::process::abort;

use edge_relay::tenant::types::{Connection, ConnectionReason, Frame, Output, Publication};
use exports::edge_relay::tenant::{filter, filter_demand};
use wasi::{clocks::monotonic_clock, keyvalue::store};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:demand/demand",
    generate_all,
});

/// How many frames channel `many` brings.
const MANY: usize = 1_000;
/// A frame of more bytes than may wait for an upstream.
const TOO_LARGE: usize = (1 << 20) + 1;
/// How long the call takes for a channel whose name begins with `slow`.
const SLOW_NANOS: u64 = 300_000_000;

struct Demand;
export!(Demand);

impl filter::Guest for Demand {
    /// Tells the upstream how the connection before this one ended.
    fn on_open(_upstream: String, connection: Connection) -> Vec<Frame> {
        if connection.reason != ConnectionReason::New {
            // The partner knows what another instance has subscribed to.
            return Vec::new();
        }
        let ended = store::open("default").and_then(|bucket| bucket.get("ended")).ok().flatten().unwrap_or_default();
        vec![Frame::Text(format!("open {}", String::from_utf8_lossy(&ended)))]
    }

    fn on_frames(_upstream: String, _connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        let publish = |data| {
            Output::Publish(Publication {
                channel: "out".to_owned(),
                key: None,
                data,
                remove: false,
                id: None,
                at: None,
            })
        };
        frames.into_iter().map(publish).collect()
    }

    fn on_close(_upstream: String, _connection: u64, reason: String) -> Vec<Output> {
        if store::open("default").and_then(|bucket| bucket.set("ended", reason.as_bytes())).is_err() {
            abort();
        }
        Vec::new()
    }
}

impl filter_demand::Guest for Demand {
    fn on_channel_active(upstream: String, connection: Connection, channel: String) -> Vec<Frame> {
        if connection.reason != ConnectionReason::New {
            return Vec::new();
        }
        match channel.as_str() {
            trap if trap.starts_with("trap") => abort(),
            "loop" => stay_busy(u64::MAX),
            "many" => return (0..MANY).map(|nth| Frame::Text(format!("many {nth}"))).collect(),
            "huge" => return vec![Frame::Binary(vec![0; TOO_LARGE]), Frame::Text("beside it".to_owned())],
            slow if slow.starts_with("slow") => stay_busy(SLOW_NANOS),
            _ => {}
        }
        vec![Frame::Text(format!("{upstream}: active {channel}"))]
    }

    fn on_channel_idle(upstream: String, _connection: u64, channel: String) -> Vec<Frame> {
        vec![Frame::Text(format!("{upstream}: idle {channel}"))]
    }
}

fn stay_busy(nanos: u64) {
    let began = monotonic_clock::now();
    while monotonic_clock::now() - began < nanos {}
}
