//! Server-sent events (WHATWG HTML, section 9.2), which browsers read with `EventSource`.
//!
//! A publication is an event with its payload as `data`. A binary one has the type `binary` and its payload in base64.
//! The event's `id` is the position that the client has reached with it. If the client follows several channels, the
//! `id` has all their positions, with commas between. `EventSource` sends the last `id` back as `Last-Event-ID`. An
//! event of the type `gap` says that publications may be missing before the next one.

use std::{sync::Arc, time::SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::HeaderMap;

use crate::{Kind, MAX_CHANNELS, NotAPosition, Position};

/// A comment in place of a ping: it shows proxies and the kernel that the connection is in use.
pub const KEEP_ALIVE: &[u8] = b":\n\n";
/// How long a client waits before it reconnects, in milliseconds. All clients at once are let in within a second or
/// two.
const RETRY: &[u8] = b"retry: 2000\n";

pub const CONTENT_TYPE: &str = "text/event-stream";

/// The head of the answer, with `more` headers. The stream ends with the connection. Proxies are told not to keep or
/// buffer it.
pub fn head(more: HeaderMap) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nCache-Control: no-store, no-transform\r\n\
         X-Accel-Buffering: no\r\nConnection: close\r\nDate: {}\r\n",
        httpdate::fmt_http_date(SystemTime::now())
    )
    .into_bytes();
    for (name, value) in &more {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The positions of a client that reconnects. Empty: they cannot be read. `None`: the client has not been here before.
pub fn last_event_id(headers: &HeaderMap) -> Option<Vec<Position>> {
    // What is no text is unreadable, not empty.
    last_positions(headers.get("last-event-id")?.to_str().unwrap_or("?"))
}

/// The positions in the id of the last event that a client has. The results are those of [`last_event_id`]: an empty id
/// is that of a client which has no event (WHATWG HTML section 9.2.3).
pub fn last_positions(id: &str) -> Option<Vec<Position>> {
    (!id.is_empty()).then(|| positions(id).unwrap_or_default())
}

/// Appends what a client gets first: how long to wait before it reconnects, the gaps, then the positions to reconnect
/// with if nothing else comes. The positions stand last: a client must not have them before it knows of the gaps.
pub fn hello<'p>(gaps: &[Arc<str>], positions: impl Iterator<Item = &'p Position>, out: &mut Vec<u8>) {
    out.extend_from_slice(RETRY);
    if !gaps.is_empty() {
        out.push(b'\n');
    }
    gaps.iter().for_each(|channel| gap(channel, None, out));
    ids(positions, out);
    out.push(b'\n');
}

/// Appends a publication.
pub fn event(position: Position, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    ids([&position].into_iter(), out);
    match kind {
        Kind::Text => {
            // A line ends with CR, LF or both; the client joins the lines with LF.
            for line in lines(payload) {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
        Kind::Binary => {
            out.extend_from_slice(b"event: binary\ndata: ");
            out.extend_from_slice(BASE64_STANDARD.encode(payload).as_bytes());
            out.push(b'\n');
        }
    }
    out.push(b'\n');
}

/// Appends a gap in a channel. `position` is the client's after the gap, if that is known.
pub fn gap(channel: &str, position: Option<Position>, out: &mut Vec<u8>) {
    ids(position.iter(), out);
    let data = serde_json::json!({ "channel": channel });
    out.extend_from_slice(format!("event: gap\ndata: {data}\n\n").as_bytes());
}

/// Appends the `id` line with the client's positions. There is no line without a position.
fn ids<'p>(positions: impl Iterator<Item = &'p Position>, out: &mut Vec<u8>) {
    let mut before: &[u8] = b"id: ";
    for position in positions {
        out.extend_from_slice(before);
        position.write(out);
        before = b",";
    }
    if before == b"," {
        out.push(b'\n');
    }
}

/// Appends an event made by [`event`] or [`gap`], with these positions in place of its own.
pub fn with_id<'p>(event: &[u8], positions: impl Iterator<Item = &'p Position>, out: &mut Vec<u8>) {
    ids(positions, out);
    let own = event.starts_with(b"id: ");
    let after = event.iter().position(|byte| own && *byte == b'\n').map_or(0, |end| end + 1);
    out.extend_from_slice(event.get(after..).unwrap_or_default());
}

/// Reads the positions that [`ids`] wrote.
pub fn positions(text: &str) -> Result<Vec<Position>, NotAPosition> {
    let positions: Vec<Position> = text.split(',').take(MAX_CHANNELS + 1).map(str::parse).collect::<Result<_, _>>()?;
    if positions.len() > MAX_CHANNELS { Err(NotAPosition) } else { Ok(positions) }
}

/// The lines of a text, without their ends. An empty text has one empty line.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(text);
        };
        let (line, after) = text.split_at(end);
        let ends = if after.starts_with(b"\r\n") { 2 } else { 1 };
        rest = after.get(ends..);
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(text: &str) -> Position {
        text.parse().unwrap()
    }

    fn written(kind: Kind, payload: &[u8]) -> String {
        let mut out = Vec::new();
        event(position("00000000000000ab:7"), kind, payload, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn payloads_become_data() {
        assert_eq!(written(Kind::Text, b"{\"a\":1}"), "id: 00000000000000ab:7\ndata: {\"a\":1}\n\n");
        assert_eq!(written(Kind::Text, b""), "id: 00000000000000ab:7\ndata: \n\n");
        assert_eq!(
            written(Kind::Text, b"a\nb\r\nc\rd\n"),
            "id: 00000000000000ab:7\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"
        );
        assert_eq!(written(Kind::Binary, &[0, 255]), "id: 00000000000000ab:7\nevent: binary\ndata: AP8=\n\n");
        let mut out = Vec::new();
        gap("a\"b", Some(position("1:2")), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "id: 0000000000000001:2\nevent: gap\ndata: {\"channel\":\"a\\\"b\"}\n\n"
        );
    }

    #[test]
    fn an_event_of_several_channels_has_all_positions() {
        let positions = [position("1:2"), position("3:4")];
        let mut out = Vec::new();
        with_id(written(Kind::Text, b"x").as_bytes(), positions.iter(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "id: 0000000000000001:2,0000000000000003:4\ndata: x\n\n");
        assert_eq!(super::positions("0000000000000001:2,3:4"), Ok(positions.to_vec()));
        assert_eq!(super::positions(""), Err(NotAPosition));
        assert_eq!(super::positions("1:2,"), Err(NotAPosition));
        let mut out = Vec::new();
        with_id(b"event: gap\n\n", [].iter(), &mut out);
        assert_eq!(out, b"event: gap\n\n");
    }

    proptest! {
        /// Read as the standard says, section 9.2.6, an event gives back its text, with LF as line end.
        #[test]
        fn a_client_reads_what_was_published(text in "[a-c:\n\r ]{0,20}") {
            let event = written(Kind::Text, text.as_bytes());
            let body = event.strip_suffix("\n\n").unwrap();
            let data: Vec<&str> = body.split('\n').skip(1).map(|line| line.strip_prefix("data: ").unwrap()).collect();
            prop_assert_eq!(data.join("\n"), text.replace("\r\n", "\n").replace('\r', "\n"));
            prop_assert!(!event.contains('\r'));
        }
    }
}
