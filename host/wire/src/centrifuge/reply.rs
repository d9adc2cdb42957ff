//! Replies: what clients get. Each function appends one JSON reply, without a newline at its end. Newlines separate the
//! replies of one WebSocket message.
//!
//! A payload becomes `data`: text that is JSON stays as it is, other text becomes a JSON string, and binary becomes
//! `{"base64":"…"}`.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Serialize, de::IgnoredAny};

use crate::{Entry, Frame, Kind, Page, Position, centrifuge::Error};

/// A ping, and its pong.
pub(super) const PING: &[u8] = b"{}";

/// A subscription that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The client's position before the first publication that follows this reply. If the client recovers, this is the
    /// position it came with: a client keeps it until a publication comes, and reconnects with it.
    pub position: Position,
    /// Whether nothing was missed. `None`: the client did not ask to recover.
    pub recovered: Option<bool>,
}

/// Answers `connect`: the client is let in. It gets a ping every `ping_seconds` and must answer each. `subs` are its
/// server-side subscriptions.
pub(super) fn connect(
    id: u32,
    client: &str,
    ping_seconds: u32,
    expires_seconds: Option<u32>,
    subs: &[(&str, Subscribed)],
    out: &mut Vec<u8>,
) {
    answers(id, "connect", out);
    put(out, r#"{"client":"#);
    value(out, client);
    put(out, r#","ping":"#);
    value(out, ping_seconds);
    put(out, r#","pong":true"#);
    expires(expires_seconds, out);
    put(out, r#","subs":{"#);
    for (nth, (channel, begun)) in subs.iter().enumerate() {
        comma(nth, out);
        value(out, channel);
        put(out, ":");
        subscribed(begun, out);
    }
    put(out, "}}}");
}

/// Answers `subscribe`. The publications that are recovered follow the answer, like new ones.
pub(super) fn subscribe(id: u32, begun: &Subscribed, out: &mut Vec<u8>) {
    answers(id, "subscribe", out);
    subscribed(begun, out);
    put(out, "}");
}

/// Answers a command whose answer has no content: `unsubscribe`, `publish`, `ping`.
pub fn empty(id: u32, what: &str, out: &mut Vec<u8>) {
    answers(id, what, out);
    put(out, "{}}");
}

/// Answers `rpc`.
pub fn rpc(id: u32, result: &Frame, out: &mut Vec<u8>) {
    answers(id, "rpc", out);
    data((result.kind, &result.bytes), out);
    put(out, "}}");
}

/// Answers `history`, with the publications in the page's order.
pub fn history(id: u32, page: &Page, out: &mut Vec<u8>) {
    answers(id, "history", out);
    put(out, r#"{"publications":["#);
    for (nth, Entry { offset, key, data }) in page.entries.iter().enumerate() {
        comma(nth, out);
        published(*offset, key.name.as_deref(), key.remove, (data.kind, &data.bytes), out);
    }
    put(out, "],");
    position(page.position, out);
    put(out, "}}");
}

/// Answers `refresh`.
pub fn refresh(id: u32, client: &str, expires_seconds: Option<u32>, out: &mut Vec<u8>) {
    answers(id, "refresh", out);
    put(out, r#"{"client":"#);
    value(out, client);
    expires(expires_seconds, out);
    put(out, "}}");
}

/// Answers a command with an error. With `id` 0 no command waits for an answer, so the error is pushed as a message.
/// Clients retry by themselves after 100 and 111.
pub fn error(id: u32, code: u32, message: &str, out: &mut Vec<u8>) {
    if id == 0 {
        put(out, r#"{"push":{"message":{"data":{"error":{"code":"#);
    } else {
        put(out, r#"{"id":"#);
        value(out, id);
        put(out, r#","error":{"code":"#);
    }
    value(out, code);
    put(out, r#","message":"#);
    value(out, message);
    if id == 0 {
        put(out, "}}}}}");
        return;
    }
    if [Error::Internal, Error::TooManyRequests].iter().any(|error| error.code() == code) {
        put(out, r#","temporary":true"#);
    }
    put(out, "}}");
}

/// Pushes a publication to a channel's follower.
pub fn publication(
    channel: &str,
    offset: u64,
    key: Option<&str>,
    remove: bool,
    frame: (Kind, &[u8]),
    out: &mut Vec<u8>,
) {
    pushed(channel, "pub", out);
    published(offset, key, remove, frame, out);
    put(out, "}}");
}

/// Pushes a server-side subscription: the client follows the channel from now on, though it has not asked.
pub(super) fn subscribed_push(channel: &str, begun: &Subscribed, out: &mut Vec<u8>) {
    pushed(channel, "subscribe", out);
    subscribed(begun, out);
    put(out, "}}");
}

/// Pushes the end of a subscription.
pub(super) fn unsubscribed_push(channel: &str, code: u32, reason: &str, out: &mut Vec<u8>) {
    pushed(channel, "unsubscribe", out);
    put(out, r#"{"code":"#);
    value(out, code);
    put(out, r#","reason":"#);
    value(out, reason);
    put(out, "}}}");
}

/// Pushes a message for this client alone.
pub fn message_push(frame: &Frame, out: &mut Vec<u8>) {
    put(out, r#"{"push":{"message":"#);
    data((frame.kind, &frame.bytes), out);
    put(out, "}}}");
}

fn answers(id: u32, what: &str, out: &mut Vec<u8>) {
    put(out, r#"{"id":"#);
    value(out, id);
    put(out, ",");
    value(out, what);
    put(out, ":");
}

fn pushed(channel: &str, what: &str, out: &mut Vec<u8>) {
    put(out, r#"{"push":{"channel":"#);
    value(out, channel);
    put(out, ",");
    value(out, what);
    put(out, ":");
}

fn subscribed(begun: &Subscribed, out: &mut Vec<u8>) {
    put(out, r#"{"recoverable":true,"positioned":true,"#);
    position(begun.position, out);
    if let Some(recovered) = begun.recovered {
        put(out, r#","was_recovering":true,"recovered":"#);
        value(out, recovered);
    }
    put(out, "}");
}

fn position(Position { epoch, offset }: Position, out: &mut Vec<u8>) {
    put(out, r#""epoch":"#);
    value(out, epoch.to_string());
    put(out, r#","offset":"#);
    value(out, offset);
}

fn expires(seconds: Option<u32>, out: &mut Vec<u8>) {
    if let Some(seconds) = seconds {
        put(out, r#","expires":true,"ttl":"#);
        value(out, seconds);
    }
}

fn published(offset: u64, key: Option<&str>, remove: bool, frame: (Kind, &[u8]), out: &mut Vec<u8>) {
    data(frame, out);
    put(out, r#","offset":"#);
    value(out, offset);
    if let Some(key) = key {
        put(out, r#","tags":{"key":"#);
        value(out, key);
        put(out, if remove { r#","remove":"true"}"# } else { "}" });
    }
    put(out, "}");
}

/// Appends `{"data":…`. The caller closes the object.
fn data((kind, bytes): (Kind, &[u8]), out: &mut Vec<u8>) {
    put(out, r#"{"data":"#);
    match (kind, str::from_utf8(bytes)) {
        (Kind::Text, Ok(text)) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            let begins = out.len();
            put(out, text);
            // A newline would end the reply. Here each one is white space, since a JSON string cannot hold one.
            for byte in out.iter_mut().skip(begins).filter(|byte| matches!(byte, b'\n' | b'\r')) {
                *byte = b' ';
            }
        }
        (Kind::Text, Ok(text)) => value(out, text),
        _ => {
            put(out, r#"{"base64":""#);
            put(out, &BASE64_STANDARD.encode(bytes));
            put(out, r#""}"#);
        }
    }
}

fn comma(nth: usize, out: &mut Vec<u8>) {
    if nth > 0 {
        put(out, ",");
    }
}

fn put(out: &mut Vec<u8>, json: &str) {
    out.extend_from_slice(json.as_bytes());
}

/// Appends a value's JSON. Only strings, numbers and booleans come here, and memory takes every write, so this cannot
/// fail.
fn value(out: &mut Vec<u8>, value: impl Serialize) {
    let _ = serde_json::to_writer(out, &value);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::Key;

    /// The reply that `make` appends, parsed as a client parses it.
    fn told(make: impl FnOnce(&mut Vec<u8>)) -> Value {
        // Another reply may stand before it.
        let mut out = b"{}\n".to_vec();
        make(&mut out);
        let out = String::from_utf8(out).unwrap();
        let reply = out.strip_prefix("{}\n").unwrap();
        assert!(!reply.contains(['\n', '\r']), "{reply}");
        serde_json::from_str(reply).unwrap_or_else(|error| panic!("{error}: {reply}"))
    }

    fn frame(kind: Kind, bytes: impl AsRef<[u8]>) -> Frame {
        Frame { kind, bytes: Bytes::copy_from_slice(bytes.as_ref()) }
    }

    fn at(offset: u64) -> Position {
        Position { epoch: "00000000000000aa".parse().unwrap(), offset }
    }

    #[test]
    fn answers_are_the_protocols() {
        let plain = Subscribed { position: at(0), recovered: None };
        let lost = Subscribed { position: at(9), recovered: Some(false) };
        let begun = json!({ "recoverable": true, "positioned": true, "epoch": "00000000000000aa", "offset": 0 });
        let mut gone = begun.clone();
        gone["offset"] = json!(9);
        gone["was_recovering"] = json!(true);
        gone["recovered"] = json!(false);
        assert_eq!(
            told(|out| connect(1, "00ff", 25, None, &[("a", plain), ("\"b\n", lost)], out)),
            json!({ "id": 1, "connect": { "client": "00ff", "ping": 25, "pong": true, "subs": { "a": begun, "\"b\n": gone } } })
        );
        assert_eq!(
            told(|out| connect(1, "c", 1, Some(60), &[], out)),
            json!({ "id": 1, "connect": { "client": "c", "ping": 1, "pong": true, "expires": true, "ttl": 60, "subs": {} } })
        );
        let back = Subscribed { position: at(7), recovered: Some(true) };
        let recovered = json!({ "recoverable": true, "positioned": true, "epoch": "00000000000000aa", "offset": 7, "was_recovering": true, "recovered": true });
        assert_eq!(told(|out| subscribe(2, &back, out)), json!({ "id": 2, "subscribe": recovered }));
        assert_eq!(told(|out| empty(3, "unsubscribe", out)), json!({ "id": 3, "unsubscribe": {} }));
        assert_eq!(told(|out| rpc(4, &frame(Kind::Text, "[1]"), out)), json!({ "id": 4, "rpc": { "data": [1] } }));
        assert_eq!(
            told(|out| refresh(5, "c", Some(9), out)),
            json!({ "id": 5, "refresh": { "client": "c", "expires": true, "ttl": 9 } })
        );
        assert_eq!(
            told(|out| error(6, 103, "not \"you\"", out)),
            json!({ "id": 6, "error": { "code": 103, "message": "not \"you\"" } })
        );
        assert_eq!(
            told(|out| error(7, 111, "slowly", out)),
            json!({ "id": 7, "error": { "code": 111, "message": "slowly", "temporary": true } })
        );
    }

    #[test]
    fn pushes_are_the_protocols() {
        let begun = Subscribed { position: at(3), recovered: None };
        assert_eq!(
            told(|out| subscribed_push("c", &begun, out)),
            json!({ "push": { "channel": "c", "subscribe": { "recoverable": true, "positioned": true, "epoch": "00000000000000aa", "offset": 3 } } })
        );
        assert_eq!(
            told(|out| unsubscribed_push("c", 2500, "insufficient state", out)),
            json!({ "push": { "channel": "c", "unsubscribe": { "code": 2500, "reason": "insufficient state" } } })
        );
        assert_eq!(
            told(|out| message_push(&frame(Kind::Binary, [0, 255]), out)),
            json!({ "push": { "message": { "data": { "base64": "AP8=" } } } })
        );
        assert_eq!(
            told(|out| error(0, 100, "broke", out)),
            json!({ "push": { "message": { "data": { "error": { "code": 100, "message": "broke" } } } } })
        );
        assert_eq!(told(|out| out.extend_from_slice(PING)), json!({}));
    }

    #[test]
    fn history_is_the_page() {
        let entry = |offset, name: Option<&str>, remove, text: &str| Entry {
            offset,
            key: Key { name: name.map(Arc::from), remove },
            data: frame(Kind::Text, text),
        };
        let entries = vec![entry(5, None, false, "1"), entry(7, Some("k"), true, "x")];
        let page = Page { position: at(9), entries, recovered: None };
        let publications =
            json!([{ "data": 1, "offset": 5 }, { "data": "x", "offset": 7, "tags": { "key": "k", "remove": "true" } }]);
        assert_eq!(
            told(|out| history(1, &page, out)),
            json!({ "id": 1, "history": { "publications": publications, "epoch": "00000000000000aa", "offset": 9 } })
        );
        let none = Page { position: at(0), entries: Vec::new(), recovered: Some(false) };
        assert_eq!(
            told(|out| history(1, &none, out))["history"],
            json!({ "publications": [], "epoch": "00000000000000aa", "offset": 0 })
        );
    }

    fn data_of(kind: Kind, bytes: &[u8]) -> Value {
        let mut reply = told(|out| publication("c", 1, None, false, (kind, bytes), out));
        reply["push"]["pub"]["data"].take()
    }

    #[test]
    fn payloads_are_json_strings_or_base64() {
        assert_eq!(data_of(Kind::Text, b"{\"a\":\r\n [1,\n2]}\n"), json!({ "a": [1, 2] }));
        assert_eq!(data_of(Kind::Text, br#""a\nb""#), json!("a\nb"));
        // A newline within a string is not JSON.
        assert_eq!(data_of(Kind::Text, b"\"a\nb\""), json!("\"a\nb\""));
        for text in ["", " ", "{", "01", "nan", "{} {}", "\u{feff}{}", "\u{2028}"] {
            assert_eq!(data_of(Kind::Text, text.as_bytes()), json!(text), "{text:?}");
        }
        assert_eq!(data_of(Kind::Binary, b"{}"), json!({ "base64": "e30=" }));
        assert_eq!(data_of(Kind::Text, &[b'"', 255, b'"']), json!({ "base64": "Iv8i" }));
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
        let mut out = Vec::new();
        publication("c", 1, None, false, (Kind::Text, deep.as_bytes()), &mut out);
        assert!(String::from_utf8(out).unwrap().contains(&deep));
    }

    proptest! {
        #[test]
        fn any_payload_arrives(channel in ".*", offset in any::<u64>(), key in proptest::option::of(".*"), text in "(.|\n|\r)*") {
            let reply = told(|out| publication(&channel, offset, key.as_deref(), false, (Kind::Text, text.as_bytes()), out));
            let push = &reply["push"];
            prop_assert_eq!(&push["channel"], &json!(channel));
            prop_assert_eq!(&push["pub"]["offset"], &json!(offset));
            prop_assert_eq!(push["pub"].get("tags").cloned(), key.map(|key| json!({ "key": key })));
            let expected = serde_json::from_str::<Value>(&text).unwrap_or(json!(text));
            prop_assert_eq!(&push["pub"]["data"], &expected);
        }

        #[test]
        fn any_bytes_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let encoded = data_of(Kind::Binary, &bytes);
            let decoded = BASE64_STANDARD.decode(encoded["base64"].as_str().unwrap()).unwrap();
            prop_assert_eq!(decoded, bytes);
        }

        #[test]
        fn json_stays_json(text in r#"[ \n\r]{0,2}(\{"a":[ \n\r]?(1|"x"|\[\n?true\])\}|[0-9]{1,3}|"[a-z\\n]{0,4}")[ \n\r]{0,2}"#) {
            let expected = serde_json::from_str::<Value>(&text).unwrap_or(json!(text));
            prop_assert_eq!(data_of(Kind::Text, text.as_bytes()), expected);
        }
    }
}
