//! Commands: what clients send.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{error::Category, value::RawValue};

use crate::Position;

/// One command of a client. With `id` 0 it expects no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub id: u32,
    pub request: Request,
}

/// What a command asks for. `data` is JSON as the client sent it. It may be nested too deep for a parser that recurses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `subs`: the server-side subscriptions that the client wants to recover.
    Connect {
        token: Option<String>,
        data: Option<String>,
        subs: Vec<(String, Recover)>,
    },
    Subscribe {
        channel: String,
        data: Option<String>,
        recover: Option<Recover>,
    },
    Unsubscribe {
        channel: String,
    },
    Publish {
        channel: String,
        data: String,
    },
    Send {
        data: String,
    },
    Rpc {
        method: String,
        data: String,
    },
    /// `limit` 0 asks for the position alone, -1 for all publications.
    History {
        channel: String,
        limit: i32,
        since: Option<Recover>,
        reverse: bool,
    },
    Refresh {
        token: String,
    },
    Ping,
    /// The empty command `{}`: the answer to a ping.
    Pong,
    /// Something this relay does not support: presence, `sub_refresh`, filters by tags, and subscriptions or
    /// publications of another type than a stream.
    NotAvailable,
    /// No known request.
    Unknown,
}

/// The position that a client wants to recover from. `None`: no channel can have it, as its epoch does not have this
/// relay's form.
pub type Recover = Option<Position>;

/// A frame that breaks the protocol. Nothing from the frame is repeated here: it may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the frame has no command: send JSON objects, a line each")]
    Empty,
    #[error("command {command} of the frame is not JSON at byte {byte}: send JSON objects, a line each")]
    NotJson { command: usize, byte: usize },
    #[error("command {command} of the frame does not fit the Centrifuge protocol at byte {byte}: see its client.proto")]
    NotACommand { command: usize, byte: usize },
}

/// Reads the commands of a frame, which newlines separate.
pub fn decode(frame: &str) -> Result<Vec<Command>, Malformed> {
    let lines = frame.split('\n').filter(|line| !line.trim_ascii().is_empty());
    let commands = lines.zip(1..).map(|(line, command)| {
        // Commands are objects. Serde would also read an array, as the fields in their order.
        if line.trim_ascii_start().starts_with('[') {
            return Err(Malformed::NotACommand { command, byte: 1 });
        }
        Command::decode(line).map_err(|error| {
            let byte = error.column();
            match error.classify() {
                Category::Data => Malformed::NotACommand { command, byte },
                _ => Malformed::NotJson { command, byte },
            }
        })
    });
    let commands = commands.collect::<Result<Vec<_>, _>>()?;
    if commands.is_empty() { Err(Malformed::Empty) } else { Ok(commands) }
}

impl Command {
    fn decode(line: &str) -> Result<Self, serde_json::Error> {
        let members = line.trim_ascii().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        if members.is_some_and(|members| members.trim_ascii().is_empty()) {
            return Ok(Self { id: 0, request: Request::Pong });
        }
        let wire: Wire = serde_json::from_str(line)?;
        Ok(Self { id: wire.id, request: wire.request() })
    }
}

/// A command in its JSON form. If it has several requests, the first of these fields counts.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire<'a> {
    id: u32,
    #[serde(borrow)]
    connect: Option<ConnectParams<'a>>,
    #[serde(borrow)]
    subscribe: Option<SubscribeParams<'a>>,
    unsubscribe: Option<UnsubscribeParams>,
    #[serde(borrow)]
    publish: Option<PublishParams<'a>>,
    presence: Option<Unread>,
    presence_stats: Option<Unread>,
    history: Option<HistoryParams>,
    ping: Option<Unread>,
    #[serde(borrow)]
    send: Option<SendParams<'a>>,
    #[serde(borrow)]
    rpc: Option<RpcParams<'a>>,
    refresh: Option<RefreshParams>,
    sub_refresh: Option<Unread>,
}

/// An object whose content is not used.
#[derive(Deserialize)]
struct Unread {}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConnectParams<'a> {
    token: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    subs: BTreeMap<String, SubscribeParams<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SubscribeParams<'a> {
    channel: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    recover: bool,
    epoch: String,
    offset: u64,
    /// 0: a stream. Others, which are not supported: a map, or shared polling.
    #[serde(rename = "type")]
    kind: i32,
    /// A filter by tags, which is not supported.
    tf: Option<Unread>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct UnsubscribeParams {
    channel: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PublishParams<'a> {
    channel: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    /// 0: to a stream. Others, which are not supported: to a map.
    #[serde(rename = "type")]
    kind: i32,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HistoryParams {
    channel: String,
    limit: i32,
    since: Option<StreamPosition>,
    reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StreamPosition {
    offset: u64,
    epoch: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SendParams<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RpcParams<'a> {
    method: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RefreshParams {
    token: String,
}

impl Wire<'_> {
    fn request(self) -> Request {
        if let Some(ConnectParams { token, data, subs }) = self.connect {
            let wanted = |(channel, asked): (String, SubscribeParams)| Some((channel, asked.recover()?));
            let token = Some(token).filter(|token| !token.is_empty());
            Request::Connect { token, data: data.map(text), subs: subs.into_iter().filter_map(wanted).collect() }
        } else if let Some(asked) = self.subscribe {
            let recover = asked.recover();
            let SubscribeParams { channel, data, kind: 0, tf: None, .. } = asked else { return Request::NotAvailable };
            Request::Subscribe { channel, data: data.map(text), recover }
        } else if let Some(UnsubscribeParams { channel }) = self.unsubscribe {
            Request::Unsubscribe { channel }
        } else if let Some(asked) = self.publish {
            let PublishParams { channel, data, kind: 0 } = asked else { return Request::NotAvailable };
            Request::Publish { channel, data: or_null(data) }
        } else if self.presence.is_some() || self.presence_stats.is_some() {
            Request::NotAvailable
        } else if let Some(HistoryParams { channel, limit, since, reverse }) = self.history {
            let since = since.map(|StreamPosition { offset, epoch }| position(&epoch, offset));
            Request::History { channel, limit, since, reverse }
        } else if self.ping.is_some() {
            Request::Ping
        } else if let Some(SendParams { data }) = self.send {
            Request::Send { data: or_null(data) }
        } else if let Some(RpcParams { method, data }) = self.rpc {
            Request::Rpc { method, data: or_null(data) }
        } else if let Some(RefreshParams { token }) = self.refresh {
            Request::Refresh { token }
        } else if self.sub_refresh.is_some() {
            Request::NotAvailable
        } else {
            Request::Unknown
        }
    }
}

impl SubscribeParams<'_> {
    fn recover(&self) -> Option<Recover> {
        self.recover.then(|| position(&self.epoch, self.offset))
    }
}

fn position(epoch: &str, offset: u64) -> Recover {
    epoch.parse().ok().map(|epoch| Position { epoch, offset })
}

fn text(data: &RawValue) -> String {
    data.get().to_owned()
}

fn or_null(data: Option<&RawValue>) -> String {
    data.map_or_else(|| "null".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn one(command: Value) -> Command {
        let mut commands = decode(&command.to_string()).unwrap();
        assert_eq!(commands.len(), 1);
        commands.remove(0)
    }

    fn request(command: Value) -> Request {
        one(command).request
    }

    fn at(offset: u64) -> Recover {
        Some(Position { epoch: "00000000000000aa".parse().unwrap(), offset })
    }

    #[test]
    fn what_the_sdk_sends_is_read() {
        // As sent by the npm package `centrifuge` 5.8.0.
        let connect = r#"{"connect":{"token":"t","data":{"a":[1, 2]},"name":"js"},"id":1}"#;
        let subscribe =
            r#"{"subscribe":{"channel":"news","flag":1,"recover":true,"offset":7,"epoch":"00000000000000aa"},"id":2}"#;
        let commands = decode(&format!("{connect}\n{subscribe}\n")).unwrap();
        let (token, data) = (Some("t".to_owned()), Some(r#"{"a":[1, 2]}"#.to_owned()));
        assert_eq!(
            commands.first(),
            Some(&Command { id: 1, request: Request::Connect { token, data, subs: Vec::new() } })
        );
        let subscribe = Request::Subscribe { channel: "news".to_owned(), data: None, recover: Some(at(7)) };
        assert_eq!(commands.get(1), Some(&Command { id: 2, request: subscribe }));
        assert_eq!(decode("{}"), Ok(vec![Command { id: 0, request: Request::Pong }]));
    }

    #[test]
    fn every_request_is_told_apart() {
        let channel = || "c".to_owned();
        let data = || r#"{"a":1}"#.to_owned();
        let read = [
            (json!({ "unsubscribe": { "channel": "c" } }), Request::Unsubscribe { channel: channel() }),
            (
                json!({ "publish": { "channel": "c", "data": { "a": 1 } } }),
                Request::Publish { channel: channel(), data: data() },
            ),
            (
                json!({ "publish": { "channel": "c" } }),
                Request::Publish { channel: channel(), data: "null".to_owned() },
            ),
            (json!({ "publish": { "channel": "c", "type": 1 } }), Request::NotAvailable),
            (json!({ "send": { "data": { "a": 1 } } }), Request::Send { data: data() }),
            (json!({ "send": {} }), Request::Send { data: "null".to_owned() }),
            (
                json!({ "rpc": { "method": "m", "data": { "a": 1 } } }),
                Request::Rpc { method: "m".to_owned(), data: data() },
            ),
            (json!({ "rpc": {} }), Request::Rpc { method: String::new(), data: "null".to_owned() }),
            (
                json!({ "history": { "channel": "c", "limit": -1, "since": { "offset": 3, "epoch": "00000000000000aa" }, "reverse": true } }),
                Request::History { channel: channel(), limit: -1, since: Some(at(3)), reverse: true },
            ),
            (
                json!({ "history": { "channel": "c" } }),
                Request::History { channel: channel(), limit: 0, since: None, reverse: false },
            ),
            (json!({ "refresh": { "token": "t" } }), Request::Refresh { token: "t".to_owned() }),
            (json!({ "ping": {} }), Request::Ping),
            (json!({ "presence": { "channel": "c" } }), Request::NotAvailable),
            (json!({ "presence_stats": { "channel": "c" } }), Request::NotAvailable),
            (json!({ "sub_refresh": { "channel": "c", "token": "t" } }), Request::NotAvailable),
            (json!({ "subscribe": { "channel": "c", "type": 4 } }), Request::NotAvailable),
            (json!({ "subscribe": { "channel": "c", "tf": { "op": "and" } } }), Request::NotAvailable),
            (json!({ "id": 1, "method": 1, "params": {} }), Request::Unknown),
            (json!({ "rpc": null }), Request::Unknown),
        ];
        for (command, expected) in read {
            assert_eq!(request(command.clone()), expected, "{command}");
        }
        assert_eq!(one(json!({ "id": 4294967295_u32, "ping": {} })).id, u32::MAX);
    }

    #[test]
    fn positions_are_what_this_relay_gives_or_none() {
        let recover = |asked: Value| match request(json!({ "subscribe": asked })) {
            Request::Subscribe { recover, .. } => recover,
            other => panic!("{other:?}"),
        };
        assert_eq!(recover(json!({ "channel": "c", "offset": 7, "epoch": "00000000000000aa" })), None);
        assert_eq!(recover(json!({ "recover": true, "epoch": "00000000000000aa" })), Some(at(0)));
        // The SDK sends `_` after it was told that its state is invalid.
        for epoch in ["", "_", "xyz", "00000000000000ag"] {
            assert_eq!(recover(json!({ "recover": true, "offset": 7, "epoch": epoch })), Some(None), "{epoch}");
        }
        let subs = json!({
            "b": { "recover": true, "offset": 7, "epoch": "00000000000000aa" },
            "a": { "recover": true, "epoch": "other" },
            "c": { "offset": 1, "epoch": "00000000000000aa" },
        });
        let Request::Connect { token, subs, .. } = request(json!({ "connect": { "token": "", "subs": subs } })) else {
            panic!("no connect");
        };
        assert_eq!((token, subs), (None, vec![("a".to_owned(), None), ("b".to_owned(), at(7))]));
    }

    #[test]
    fn data_comes_as_it_was_sent() {
        let data = r#"{ "a" : "x\ny" ,"b":1e400,"c":"\ud800" }"#;
        let frame = format!(r#"{{"rpc":{{"data":{data}}}}}"#);
        let expected = Request::Rpc { method: String::new(), data: data.to_owned() };
        assert_eq!(decode(&frame).unwrap().first().map(|command| &command.request), Some(&expected));
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
        for frame in [format!(r#"{{"send":{{"data":{deep}}}}}"#), format!(r#"{{"unknown":{deep}}}"#)] {
            assert_eq!(decode(&frame).unwrap().len(), 1);
        }
        assert!(decode(&format!(r#"{{"send":{}}}"#, "[".repeat(1 << 20))).is_err());
    }

    #[test]
    fn what_is_malformed_is_placed() {
        assert_eq!(decode(""), Err(Malformed::Empty));
        assert_eq!(decode("\n \r\n"), Err(Malformed::Empty));
        assert_eq!(decode("{}\n\nnonsense"), Err(Malformed::NotJson { command: 2, byte: 2 }));
        // A newline within a string ends the command.
        assert!(matches!(decode("{\"send\":{\"data\":\"a\nb\"}}"), Err(Malformed::NotJson { command: 1, .. })));
        let secret = r#"{"id":1,"connect":{"token":{"secret":1}}}"#;
        let error = decode(secret).unwrap_err();
        assert!(matches!(error, Malformed::NotACommand { command: 1, .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        for wrong in ["1", "null", "[]", " [1]", r#""text""#, r#"{"id":-1}"#, r#"{"id":1.5}"#, r#"{"id":1}{"id":2}"#] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let object = proptest::collection::btree_map(".*", inner.clone(), 0..4);
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(frame in ".*") {
            let _ = decode(&frame);
        }

        #[test]
        fn no_json_breaks_it(commands in proptest::collection::vec(json_value(), 0..4)) {
            let lines: Vec<_> = commands.iter().map(Value::to_string).collect();
            let _ = decode(&lines.join("\n"));
        }

        #[test]
        fn data_and_names_arrive(id in any::<u32>(), channel in ".*", data in json_value(), count in 1_usize..5) {
            let line = json!({ "id": id, "publish": { "channel": channel, "data": data } }).to_string();
            let commands = decode(&vec![line; count].join("\n")).unwrap();
            prop_assert_eq!(commands.len(), count);
            for command in commands {
                prop_assert_eq!(command.id, id);
                let Request::Publish { channel: name, data: text } = command.request else { panic!("no publish") };
                prop_assert_eq!(&name, &channel);
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), data.clone());
            }
        }
    }
}
