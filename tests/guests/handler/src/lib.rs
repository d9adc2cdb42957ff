//! A client handler that does what clients tell it.
//!
//! When a client connects, its query says what to do. When it subscribes, the channel's name does. After that each
//! message has text commands, one in each line, as plain text or as a JSON string. Binary messages are sent back. An
//! RPC is a command too: the method, then the data. What clients publish is published, except on channels whose names
//! begin with `private`.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{hint::black_box, process::abort};

use edge_relay::tenant::{
    channels,
    types::{Close, Frame, Publication},
};
use exports::edge_relay::tenant::{
    client_handler::{Acceptance, Action, Client, Error, Guest, Kind, Refusal, Request, UpstreamFrame},
    client_lease,
};
use wasi::{
    clocks::monotonic_clock,
    keyvalue::store,
    logging::logging::{Level, log},
};

wit_bindgen::generate!({
    path: ["../../../wit/edge-relay-tenant@0.1.0", "wit"],
    world: "edge-relay-tests:handler/handler",
    generate_all,
});

/// Buckets of the state: the requests of clients, the channels they asked for, and what they want kept.
const REQUESTS: &str = "requests";
const ASKED: &str = "asked";
const NOTES: &str = "default";

struct Handler;
export!(Handler);

impl Guest for Handler {
    /// Publishes each client that connects on channel `knocks`. The query says what happens then: `reject=STATUS`,
    /// `trap`, `loop`, `busy=MS`, or `hold=KEY`, which waits until the key is in the state. Otherwise the client is let
    /// in, with `identity=NAME` and `subprotocol=NAME`, and with `channels=a,b` (`channels=` gives none) or as many
    /// channels as `many=COUNT` says.
    fn on_connect(id: String, request: Request) -> Result<Acceptance, Refusal> {
        publish("knocks", &format!("{id} {}", request.query));
        set(REQUESTS, &id, &shown(&request));
        let query = |wanted: &str| {
            let pairs = request.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.filter(|(key, _)| *key == wanted).map(|(_, value)| value).next()
        };
        if query("trap").is_some() {
            abort();
        }
        if query("loop").is_some() {
            loop_for_ever();
        }
        stay_busy(query("busy").map_or(0, number));
        if let Some(key) = query("hold") {
            hold(key);
        }
        if let Some(status) = query("reject") {
            return Err(Refusal { status: number(status) as u16, reason: format!("told to say {status}") });
        }
        let channels = match (query("channels"), query("many")) {
            (Some(names), _) => Some(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()),
            (None, Some(count)) => Some((0..number(count)).map(|nth| format!("many-{nth}")).collect()),
            (None, None) => None,
        };
        let text = |wanted| query(wanted).map(str::to_owned);
        Ok(Acceptance { identity: text("identity"), channels, subprotocol: text("subprotocol") })
    }

    /// Refuses channels whose names begin with `private`.
    fn on_subscribe(client: Client, channel: String, data: Option<String>) -> Result<(), Refusal> {
        let asked = get(ASKED, &client.id);
        let data = data.map(|data| format!("={data}")).unwrap_or_default();
        set(ASKED, &client.id, &format!("{}{channel}{data} ", asked.unwrap_or_default()));
        match channel.as_str() {
            "trap" => abort(),
            "loop" => loop_for_ever(),
            name if name.starts_with("private") => Err(Refusal { status: 451, reason: format!("{name} is private") }),
            _ => Ok(()),
        }
    }

    fn on_message(client: Client, kind: Kind, frame: Frame) -> Vec<Action> {
        match (kind, frame) {
            (Kind::Publish(channel), _) if channel.starts_with("private") => {
                vec![Action::Error(Error { code: 403, message: format!("{channel} is private") })]
            }
            (Kind::Publish(channel), data) => vec![Action::Publish(Publication { data, ..publication(&channel, "") })],
            (Kind::Rpc(method), Frame::Text(data)) => obey_all(&client, &format!("{method} {}", unquoted(data))),
            (_, Frame::Text(text)) => obey_all(&client, &unquoted(text)),
            (_, frame) => vec![Action::Reply(frame)],
        }
    }

    /// Publishes on channel `gone` which client left and why, and logs it. A client with the identity `fatal` then
    /// makes it trap.
    fn on_disconnect(client: Client, reason: String) {
        let text = format!("{} {reason}", client.id);
        log(Level::Info, "gone", &text);
        publish("gone", &text);
        if client.identity.as_deref() == Some("fatal") {
            abort();
        }
    }
}

impl client_lease::Guest for Handler {
    /// The token decides: `for SECONDS` or `not WHY`. With any other token, or none, a client may stay.
    fn renew(_id: String, _identity: Option<String>, token: Option<String>) -> Result<Option<u32>, String> {
        match token.as_deref().and_then(|token| token.split_once(' ')) {
            Some(("for", seconds)) => Ok(Some(number(seconds) as u32)),
            Some(("not", why)) => Err(why.to_owned()),
            _ => Ok(None),
        }
    }
}

fn obey_all(client: &Client, commands: &str) -> Vec<Action> {
    commands.split('\n').flat_map(|command| obey(client, command)).collect()
}

fn obey(client: &Client, command: &str) -> Vec<Action> {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "reply" => rest.split(' ').map(reply).collect(),
        "result" => vec![Action::RpcResult(text(rest))],
        "error" => vec![Action::Error(Error { code: number(first) as u32, message: second.to_owned() })],
        "publish" => vec![Action::Publish(publication(first, second))],
        "subscribe" => vec![Action::Subscribe(rest.to_owned())],
        "unsubscribe" => vec![Action::Unsubscribe(rest.to_owned())],
        "disconnect" => vec![Action::Disconnect(close(first, second))],
        "upstream" => vec![Action::Upstream(UpstreamFrame { upstream: first.to_owned(), frame: text(second) })],
        // Acts at once, through the imports.
        "kick" => {
            let (code, reason) = second.split_once(' ').unwrap_or((second, ""));
            vec![reply(&format!("{:?}", channels::disconnect(first, &close(code, reason))))]
        }
        "subscribers" => vec![reply(&channels::subscriber_count(rest).to_string())],
        "id" => vec![reply(&client.id)],
        "whoami" => vec![reply(client.identity.as_deref().unwrap_or("nobody"))],
        "request" => vec![reply(&get(REQUESTS, &client.id).unwrap_or_default())],
        "asked" => vec![reply(&get(ASKED, &client.id).unwrap_or_default())],
        "set" => {
            set(NOTES, first, second);
            Vec::new()
        }
        "get" => vec![reply(&get(NOTES, rest).unwrap_or_default())],
        "trap" => abort(),
        "loop" => loop_for_ever(),
        "busy" => {
            stay_busy(number(rest));
            Vec::new()
        }
        "hold" => {
            hold(rest);
            Vec::new()
        }
        "log" => {
            log(Level::Info, "told", rest);
            Vec::new()
        }
        "log-many" => {
            (0..number(rest)).for_each(|nth| log(Level::Info, "told", &format!("line {nth}")));
            Vec::new()
        }
        "leak" => {
            (0..number(rest)).filter_map(|_| store::open(NOTES).ok()).for_each(std::mem::forget);
            vec![reply("leaked")]
        }
        "fill" => {
            vec![reply(&format!("{:?}", store::open(NOTES).and_then(|at| at.set(first, &large(number(second))))))]
        }
        "reserve" => vec![reply(&format!("{:?}", Vec::<u8>::new().try_reserve_exact(number(rest)).is_ok()))],
        "hoard" => hoard_for_ever(),
        // Returns all replies from one call, to test what they cost the host together.
        "flood" => vec![Action::Reply(Frame::Binary(vec![7; number(second)])); number(first)],
        "count" => (0..number(rest)).map(|nth| reply(&nth.to_string())).collect(),
        "publish-large" => {
            let data = Frame::Binary(large(number(second)));
            vec![Action::Publish(Publication { data, ..publication(first, "") })]
        }
        // Publishes at once, through the imports. The reply is the import's result.
        "publish-now" => {
            let many = vec![publication(first, ""); number(second)];
            vec![reply(&format!("{:?}", channels::publish(&many)))]
        }
        "publish-many" => vec![Action::Publish(publication(first, "")); number(second)],
        _ => vec![reply(&format!("not a command: {command}"))],
    }
}

/// Returns the content of a JSON string, if the text is one. It knows only the escapes of newlines and quotes.
fn unquoted(text: String) -> String {
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) => text.replace("\\n", "\n").replace("\\\"", "\""),
        None => text,
    }
}

fn reply(said: &str) -> Action {
    Action::Reply(text(said))
}

fn text(text: &str) -> Frame {
    Frame::Text(text.to_owned())
}

fn close(code: &str, reason: &str) -> Close {
    Close { code: number(code) as u16, reason: reason.to_owned() }
}

/// Publishes at once, through the imports.
fn publish(channel: &str, said: &str) {
    if let Err(error) = channels::publish(&[publication(channel, said)]) {
        log(Level::Error, "publish", &error);
    }
}

fn publication(channel: &str, said: &str) -> Publication {
    Publication { channel: channel.to_owned(), key: None, data: text(said), remove: false, id: None, at: None }
}

/// Makes bytes of which each four hold their own index, so that a misplaced byte is noticed.
fn large(size: usize) -> Vec<u8> {
    (0..size as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

/// Parses the digits of a number. Returns 0 if they are not one.
fn number(digits: &str) -> usize {
    digits.parse().unwrap_or_default()
}

/// The parts of a request, one in each line.
fn shown(request: &Request) -> String {
    let Request { path, query, headers, client_ip, transport, token, claims, data } = request;
    let mut lines = format!("{path}\n{query}\n{client_ip}\n{transport:?}\n{token:?}\n{data:?}\n{claims:?}\n");
    for (name, value) in headers {
        lines.push_str(&format!("{name}: {value}\n"));
    }
    lines
}

fn set(bucket: &str, key: &str, value: &str) {
    if let Err(error) = store::open(bucket).and_then(|bucket| bucket.set(key, value.as_bytes())) {
        log(Level::Error, "state", &format!("{error:?}"));
    }
}

fn get(bucket: &str, key: &str) -> Option<String> {
    let value = store::open(bucket).and_then(|bucket| bucket.get(key)).ok().flatten()?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

fn loop_for_ever() -> ! {
    loop {
        black_box(());
    }
}

fn hoard_for_ever() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Returns when the key is in the state.
fn hold(key: &str) {
    while get(NOTES, key).is_none() {}
}

fn stay_busy(milliseconds: usize) {
    let end = monotonic_clock::now() + milliseconds as u64 * 1_000_000;
    while monotonic_clock::now() < end {}
}
