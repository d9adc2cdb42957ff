//! A client of the model: it reads bytes, and decodes them as its format says.

use std::{
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    sync::Arc,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use wire::{Position, frame, sse};

use crate::{
    channel::Format,
    delivery::{
        ClientId, ClientLimits,
        shard::model::{CHANNELS, Published},
    },
};

pub struct Client {
    pub socket: UnixStream,
    pub bytes: Vec<u8>,
    pub channels: Vec<usize>,
    /// For each channel, the offset of the newest publication when the client began to follow it.
    pub joined_at: [u64; 2],
    /// For each channel, the offset after which the client resumes.
    pub after: [Option<u64>; 2],
    pub format: Format,
    pub left: bool,
    pub id: ClientId,
    /// The client's own, so that a later client in the same slot is not taken for it.
    pub client_limits: Arc<ClientLimits>,
}

impl Client {
    /// Reads at most `bytes` bytes. Returns whether there were any.
    pub fn read(&mut self, bytes: usize) -> bool {
        let mut part = vec![0; bytes];
        match self.socket.read(&mut part) {
            Ok(read) => {
                self.bytes.extend_from_slice(&part[..read]);
                read > 0
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// What has come in whole messages, and the code that the client was closed with. `whole`: nothing else may have
    /// come.
    pub fn received(&self, published: &[Published], whole: bool) -> (Vec<Received>, Option<u16>) {
        match self.format {
            Format::Sse => self.received_events(published, whole),
            _ => self.received_frames(published, whole),
        }
    }

    fn received_frames(&self, published: &[Published], whole: bool) -> (Vec<Received>, Option<u16>) {
        let (mut received, mut rest) = (Vec::new(), self.bytes.as_slice());
        while let [first, second, ..] = *rest {
            let (header, length) = match second {
                126 if rest.len() >= 4 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                126 => break,
                127.. => panic!("the frame is longer than any of this test, or masked"),
                length => (2, usize::from(length)),
            };
            let Some(payload) = rest.get(header..header + length) else { break };
            rest = &rest[header + length..];
            if first == 0x80 | frame::CLOSE {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (received, Some(if code == 3008 { 1013 } else { code }));
            }
            if first == 0x80 | frame::TEXT && payload.starts_with(b"{") {
                received.extend(self.pushed(payload, published));
                continue;
            }
            if first == 0x80 | frame::TEXT {
                assert!(payload.iter().all(|byte| *byte == b'r'), "a reply has other bytes in it");
                continue;
            }
            assert_eq!(first, 0x80 | frame::BINARY);
            received.push(Received::Publication(number_of(payload, published)));
        }
        assert!(!whole || rest.is_empty(), "half a frame at the end");
        (received, None)
    }

    /// What a push of the Centrifuge protocol says. `None`: it is the reply to a command.
    fn pushed(&self, json: &[u8], published: &[Published]) -> Option<Received> {
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let Some(push) = json.get("push") else {
            assert!(json["subscribe"].is_object(), "{json}");
            return None;
        };
        let channel = CHANNELS.iter().position(|channel| push["channel"] == **channel).unwrap();
        if push["unsubscribe"]["code"] == 2500 {
            return Some(Received::Gap(channel));
        }
        let payload = BASE64_STANDARD.decode(push["pub"]["data"]["base64"].as_str().unwrap()).unwrap();
        let number = number_of(&payload, published);
        assert_eq!((published[number].channel, &push["pub"]["offset"]), (channel, &published[number].offset.into()));
        Some(Received::Publication(number))
    }

    fn received_events(&self, published: &[Published], whole: bool) -> (Vec<Received>, Option<u16>) {
        let mut received = Vec::new();
        let (events, rest) = self.events();
        for event in events {
            if let Some(closed) = event.strip_prefix(": closed, ") {
                return (received, Some(closed[..4].parse().unwrap()));
            }
            let Some((_, data)) = event.rsplit_once("data: ") else { continue };
            if event.contains("event: gap") {
                let channel = CHANNELS.iter().position(|channel| data.contains(&format!("\"{channel}\""))).unwrap();
                received.push(Received::Gap(channel));
                continue;
            }
            let number = number_of(&BASE64_STANDARD.decode(data).unwrap(), published);
            let offset = published[number].offset;
            let positions = id_of(event).unwrap();
            assert!(positions.iter().any(|position| position.offset == offset), "{offset} is not in {positions:?}");
            received.push(Received::Publication(number));
        }
        assert!(!whole || rest.is_empty(), "half an event at the end: {rest:?}");
        (received, None)
    }

    /// The whole events, and the bytes after them.
    fn events(&self) -> (Vec<&str>, &str) {
        let mut events: Vec<&str> = str::from_utf8(&self.bytes).unwrap().split("\n\n").collect();
        let rest = events.pop().unwrap();
        (events, rest)
    }

    /// The last `id` that the client has read, before an event or in one.
    pub fn last_id(&self) -> Option<Vec<Position>> {
        self.events().0.iter().rev().find_map(|event| id_of(event))
    }
}

/// What a client learns of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Publication(usize),
    /// Something may be missing in this channel.
    Gap(usize),
}

pub fn id_of(event: &str) -> Option<Vec<Position>> {
    let id = event.lines().find_map(|line| line.strip_prefix("id: "))?;
    Some(sse::positions(id).unwrap())
}

/// The number of the publication with this payload, which must be complete.
pub fn number_of(payload: &[u8], published: &[Published]) -> usize {
    let number = usize::try_from(u32::from_be_bytes(payload[..4].try_into().unwrap())).unwrap();
    assert_eq!(*payload, payload_of(number, published[number].length), "publication {number}");
    number
}

pub fn payload_of(number: usize, length: usize) -> Vec<u8> {
    let mut payload = u32::try_from(number).unwrap().to_be_bytes().to_vec();
    payload.resize(4 + length, number as u8);
    payload
}
