//! A filter that shows what components may do. Each text frame is a command; its answer goes out on channel `answers`.
//! The component is a job too: each run goes out on channel `ticks`.
#![allow(unsafe_code)] // Only what `export!` expands to.

use edge_relay::tenant::{
    channels, records,
    types::{Connection, Frame, Output, Publication},
    upstreams::{self, SendOptions, UpstreamStatus},
};
use exports::edge_relay::tenant::{filter, job};
use wasi::keyvalue::{atomics, batch, store};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:probe/probe",
    generate_all,
});

/// On whatever connection there is.
const ANY: SendOptions = SendOptions { connection: None, first: false };
/// Bytes of the longest publication that an answer repeats.
const LONGEST: usize = 100;

struct Probe;
export!(Probe);

impl job::Guest for Probe {
    /// A schedule called `loop` never returns, and one called `trap` traps. `many-COUNT-BYTES` makes COUNT
    /// publications of BYTES bytes, `spread-COUNT-NAME-BYTES` makes each on a channel of its own, and
    /// `append-COUNT-BYTES` appends COUNT records. Others publish their name, how often they have run, and the time at
    /// which they should have run.
    fn on_schedule(name: String, scheduled_at: u64) -> Vec<Publication> {
        let words: Vec<&str> = name.split('-').collect();
        let number = |text: &str| text.parse::<usize>().unwrap_or_default();
        match words[..] {
            ["many", count, bytes] => return vec![publication("ticks", "x".repeat(number(bytes))); number(count)],
            ["spread", count, name, bytes] => {
                let one = |nth| publication(&format!("{name}.{nth}"), "x".repeat(number(bytes)));
                return (0..number(count)).map(one).collect();
            }
            ["append", count, bytes] => {
                let rows = vec![vec![b'x'; number(bytes)]; number(count)];
                // What the store says makes no difference.
                let _ = records::append_batch("ticks", &rows);
                return Vec::new();
            }
            _ => {}
        }
        match name.as_str() {
            "loop" => loop {
                std::hint::black_box(scheduled_at);
            },
            "trap" => std::process::abort(),
            _ => {}
        }
        let runs = store::open("default").and_then(|bucket| atomics::increment(&bucket, &name, 1)).unwrap_or_default();
        vec![publication("ticks", format!("{name} {runs} {scheduled_at}"))]
    }
}

impl filter::Guest for Probe {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        Vec::new()
    }

    fn on_frames(_upstream: String, _connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        let texts = frames.into_iter().filter_map(|frame| match frame {
            Frame::Text(text) => Some(text),
            Frame::Binary(_) => None,
        });
        texts.map(|command| Output::Publish(publication("answers", answer(&command)))).collect()
    }

    fn on_close(_upstream: String, _connection: u64, _reason: String) -> Vec<Output> {
        Vec::new()
    }
}

fn publication(channel: &str, text: String) -> Publication {
    Publication { channel: channel.to_owned(), key: None, data: Frame::Text(text), remove: false, id: None, at: None }
}

fn keyed(channel: &str, key: &str, text: String) -> Publication {
    Publication { key: Some(key.to_owned()), ..publication(channel, text) }
}

fn answer(command: &str) -> String {
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["set", bucket, key, value] => format!("{:?}", open(bucket).and_then(|at| at.set(key, value.as_bytes()))),
        ["fill", bucket, key, bytes] => {
            format!("{:?}", open(bucket).and_then(|at| at.set(key, &vec![0; bytes.parse().unwrap_or_default()])))
        }
        ["get", bucket, key] => match open(bucket).and_then(|at| at.get(key)) {
            Ok(Some(value)) => String::from_utf8_lossy(&value).into_owned(),
            other => format!("{other:?}"),
        },
        ["exists", bucket, key] => format!("{:?}", open(bucket).and_then(|at| at.exists(key))),
        ["delete", bucket, key] => format!("{:?}", open(bucket).and_then(|at| at.delete(key))),
        ["keys", bucket] => format!("{:?}", open(bucket).and_then(|at| at.list_keys(None)).map(|page| page.keys)),
        ["add", bucket, key, delta] => {
            let delta = delta.parse().unwrap_or_default();
            format!("{:?}", open(bucket).and_then(|at| atomics::increment(&at, key, delta)))
        }
        ["swap", bucket, one, other] => format!("{:?}", open(bucket).and_then(|at| swap(&at, one, other))),
        ["clear", bucket, one, other] => {
            format!("{:?}", open(bucket).and_then(|at| batch::delete_many(&at, &[one.into(), other.into()])))
        }
        ["publish", channel, text] => format!("{:?}", channels::publish(&[publication(channel, text.to_owned())])),
        ["publish-key", channel, key, text] => {
            format!("{:?}", channels::publish(&[keyed(channel, key, text.to_owned())]))
        }
        ["remove", channel, key] => {
            let removal = Publication { remove: true, ..keyed(channel, key, format!("{key} is gone")) };
            format!("{:?}", channels::publish(&[removal]))
        }
        ["rounds", channel, from, to, keys, bytes] => {
            let number = |text: &str| text.parse::<usize>().unwrap_or_default();
            let (keys, bytes) = (number(keys), number(bytes));
            let update = |round: usize, key: usize| {
                let key = format!("k{key}");
                keyed(channel, &key, format!("{:<bytes$}", format!("{key} {round}")))
            };
            let updates: Vec<_> =
                (number(from)..number(to)).flat_map(|round| (0..keys).map(move |key| update(round, key))).collect();
            format!("{:?}", channels::publish(&updates))
        }
        ["many", channel, count] => {
            let many = vec![publication(channel, String::new()); count.parse().unwrap_or_default()];
            format!("{:?}", channels::publish(&many))
        }
        ["append", collection, text] => match records::append(collection, text.as_bytes()) {
            Ok(id) => id,
            Err(error) => format!("{error:?}"),
        },
        ["append-many", collection, count, bytes] => {
            let row = vec![b'x'; bytes.parse().unwrap_or_default()];
            let rows = vec![row; count.parse().unwrap_or_default()];
            match records::append_batch(collection, &rows) {
                Ok(ids) => ids.len().to_string(),
                Err(error) => format!("{error:?}"),
            }
        }
        ["append-and-read", collection, text, count] => match records::append(collection, text.as_bytes()) {
            Ok(_) => shown(records::latest(collection, count.parse().unwrap_or_default())),
            Err(error) => format!("{error:?}"),
        },
        ["records", collection, count] => shown(records::latest(collection, count.parse().unwrap_or_default())),
        ["range", collection, at, to, limit] => {
            let number = |text: &str| text.parse().unwrap_or_default();
            let start = match at.parse() {
                Ok(at) => records::Start::At(at),
                Err(_) => records::Start::After(at.to_owned()),
            };
            shown(records::range(collection, &start, number(to), number(limit) as u32))
        }
        ["walk", collection, limit] => walk(collection, limit.parse().unwrap_or_default()),
        ["latest", channel] => match channels::latest(channel) {
            Some(Frame::Text(text)) if text.len() > LONGEST => format!("{} bytes", text.len()),
            latest => format!("{latest:?}"),
        },
        ["subscribers", channel] => channels::subscriber_count(channel).to_string(),
        ["send", upstream, text] => format!("{:?}", upstreams::send(upstream, &[Frame::Text(text.to_owned())], ANY)),
        ["status", upstream] => match upstreams::status(upstream) {
            Ok(UpstreamStatus { state, queued, .. }) => format!("Ok({state:?}) {queued}"),
            Err(error) => format!("Err({error:?})"),
        },
        _ => format!("not a command: {command}"),
    }
}

/// Reads a collection page by page. Returns how many rows there are, and whether each came once and in order.
fn walk(collection: &str, limit: u32) -> String {
    let (mut start, mut ids): (_, Vec<String>) = (records::Start::At(0), Vec::new());
    loop {
        match records::range(collection, &start, u64::MAX, limit) {
            Err(error) => return format!("{error:?}"),
            Ok(rows) if rows.is_empty() => {
                let order = if ids.is_sorted_by(|one, other| one < other) { "in order" } else { "not in order" };
                return format!("{} rows, {order}", ids.len());
            }
            Ok(rows) => ids.extend(rows.into_iter().map(|row| row.id)),
        }
        if let Some(last) = ids.last() {
            start = records::Start::After(last.clone());
        }
    }
}

/// The texts of the rows.
fn shown(rows: Result<Vec<records::Entry>, records::Error>) -> String {
    let text = |row: records::Entry| String::from_utf8_lossy(&row.data).into_owned();
    match rows {
        Ok(rows) => rows.into_iter().map(text).collect::<Vec<_>>().join(" "),
        Err(error) => format!("{error:?}"),
    }
}

fn open(bucket: &str) -> Result<store::Bucket, store::Error> {
    store::open(bucket)
}

/// Swaps the values of two keys through the batch interface.
fn swap(bucket: &store::Bucket, one: &str, other: &str) -> Result<(), store::Error> {
    let mut values = batch::get_many(bucket, &[one.to_owned(), other.to_owned()])?.into_iter().flatten();
    match (values.next(), values.next()) {
        (Some((_, first)), Some((_, second))) => {
            batch::set_many(bucket, &[(one.to_owned(), second), (other.to_owned(), first)])
        }
        _ => Err(store::Error::Other("not both are there".to_owned())),
    }
}
