//! A filter that shows what it is told of connections, and does what its upstream's messages say. It follows demand.
//!
//! It tells the upstream of each `on-open` and of each active channel. Messages that are no commands go out on channel
//! `out`, behind the number of their connection; answers to commands go out on channel `answers`. With the setting
//! `sleep` each call with messages takes that many milliseconds, with `slow-open` each `on-open`.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::process::abort;

use edge_relay::tenant::{
    channels,
    types::{Connection, Frame, Gap, Output, Publication, PublicationId},
    upstreams::{self, ReconnectOptions, SendOptions, UpstreamStatus},
};
use exports::edge_relay::tenant::{filter, filter_demand};
use wasi::{clocks::monotonic_clock, config::store};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:told/told",
    generate_all,
});

struct Told;
export!(Told);

impl filter::Guest for Told {
    fn on_open(upstream: String, connection: Connection) -> Vec<Frame> {
        sleep(setting("slow-open"));
        if setting("trap-open") > 0 {
            abort();
        }
        let Connection { number, reason } = connection;
        if setting("send-in-open") > 0 {
            let sent = [("one", false), ("two", false), ("first", true)];
            let sent = sent.map(|(text, first)| send(&upstream, text, None, first)).join(" ");
            let queued = upstreams::status(&upstream).map_or(0, |status| status.queued);
            return vec![text(format!("open {number} {reason:?}")), text(format!("{sent}, {queued} wait"))];
        }
        vec![text(format!("open {number} {reason:?}"))]
    }

    fn on_frames(upstream: String, connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        sleep(setting("sleep"));
        frames.into_iter().map(|frame| output(&upstream, connection, frame)).collect()
    }

    fn on_close(_upstream: String, connection: u64, reason: String) -> Vec<Output> {
        vec![publish("out", format!("closed {connection} {reason}"))]
    }
}

impl filter_demand::Guest for Told {
    fn on_channel_active(_upstream: String, connection: Connection, channel: String) -> Vec<Frame> {
        if !channel.starts_with("wanted") {
            return Vec::new();
        }
        vec![text(format!("active {channel} {} {:?}", connection.number, connection.reason))]
    }

    fn on_channel_idle(_upstream: String, connection: u64, channel: String) -> Vec<Frame> {
        if !channel.starts_with("wanted") {
            return Vec::new();
        }
        vec![text(format!("idle {channel} {connection}"))]
    }
}

fn output(upstream: &str, connection: u64, frame: Frame) -> Output {
    let Frame::Text(command) = frame else { return publish("out", "not text".into()) };
    let words: Vec<_> = command.split(' ').collect();
    let answer = match *words {
        ["trap"] => abort(),
        ["gap", reason, ref channels @ ..] => return Output::Gap(gap(reason, channels)),
        ["gap-import", reason, ref channels @ ..] => {
            let Gap { channels, reason } = gap(reason, channels);
            format!("{:?}", channels::gap(&channels, &reason))
        }
        ["id", id] => {
            let named = Publication { id: Some(PublicationId::Text(id.to_owned())), ..publication("out", command) };
            return Output::Publish(named);
        }
        ["at", at] => {
            return Output::Publish(Publication { at: at.parse().ok(), ..publication("out", command) });
        }
        ["send", text] => send(upstream, text, None, false),
        ["send-to", other, text] => send(other, text, None, false),
        ["send-on", number, text] => send(upstream, text, number.parse().ok(), false),
        ["expect", within] => shown(upstreams::expect(upstream, within.parse().ok())),
        ["reconnect", reason] => reconnect(upstream, reason, false),
        ["overlap", reason] => reconnect(upstream, reason, true),
        ["slow", millis] => {
            sleep(millis.parse().unwrap_or_default());
            return publish("out", command);
        }
        ["status"] => status(upstream),
        ["status-of", other] => status(other),
        _ => return publish("out", format!("{connection} {command}")),
    };
    publish("answers", answer)
}

fn status(upstream: &str) -> String {
    match upstreams::status(upstream) {
        Ok(UpstreamStatus { state, reason, until, queued }) => format!("{state:?} {reason:?} {until:?} {queued}"),
        Err(error) => error.name().to_owned(),
    }
}

/// `ok`, or the name of the error.
fn shown(outcome: Result<(), upstreams::Error>) -> String {
    outcome.map_or_else(|error| error.name().to_owned(), |()| "ok".to_owned())
}

fn gap(reason: &str, channels: &[&str]) -> Gap {
    Gap { channels: channels.iter().map(|channel| channel.to_string()).collect(), reason: reason.to_owned() }
}

fn send(upstream: &str, message: &str, connection: Option<u64>, first: bool) -> String {
    shown(upstreams::send(upstream, &[text(message.to_owned())], SendOptions { connection, first }))
}

fn reconnect(upstream: &str, reason: &str, overlap: bool) -> String {
    shown(upstreams::reconnect(upstream, &ReconnectOptions { reason: reason.to_owned(), overlap }))
}

fn text(text: String) -> Frame {
    Frame::Text(text)
}

fn publication(channel: &str, message: String) -> Publication {
    Publication { channel: channel.to_owned(), key: None, data: text(message), remove: false, id: None, at: None }
}

fn publish(channel: &str, text: String) -> Output {
    Output::Publish(publication(channel, text))
}

fn setting(name: &str) -> u64 {
    store::get(name).ok().flatten().and_then(|value| value.parse().ok()).unwrap_or_default()
}

fn sleep(millis: u64) {
    if millis > 0 {
        monotonic_clock::subscribe_duration(millis * 1_000_000).block();
    }
}
