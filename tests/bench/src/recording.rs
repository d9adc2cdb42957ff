//! A recorded feed in place of the messages that are made here, for costs that depend on what messages say.
//!
//! The file has JSON lines: `{"from": "upstream", "text": "…"}` is a message, or with `base64` instead of `text`. Lines
//! that are not from the upstream are left out. Every message must be a JSON object. It gets one more member at its
//! start: `{"stamp":"NUMBER.TIME",`, 41 bytes with the number and time that `message` describes.

use std::{fs, io::Write, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::{
    failure::{Context, Failure},
    message::{self, Stamp},
};

const BEFORE_STAMP: &[u8] = br#"{"stamp":""#;
const BEHIND_STAMP: &[u8] = br#"","#;

pub struct Recording {
    /// The messages without their opening brace.
    messages: Vec<String>,
}

impl Recording {
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| format!("{} has no messages, or not only JSON objects", file.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut messages = Vec::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).ok()?;
            if line.get("from")? != "upstream" {
                continue;
            }
            let message = match line.get("text") {
                Some(text) => text.as_str()?.to_owned(),
                None => String::from_utf8(BASE64_STANDARD.decode(line.get("base64")?.as_str()?).ok()?).ok()?,
            };
            // The object must have a member: the stamp's comma needs one after it.
            messages.push(message.strip_prefix('{').filter(|rest| rest.starts_with('"'))?.to_owned());
        }
        (!messages.is_empty()).then_some(Self { messages })
    }

    /// Appends the message `number` out of `of`. They are spread evenly over the recording, so that a few are like all
    /// of it.
    pub fn write(&self, number: u32, of: u32, sent: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(BEFORE_STAMP);
        message::write_stamp(number, sent, out);
        out.extend_from_slice(BEHIND_STAMP);
        // Writing to a `Vec` cannot fail.
        let _ = out.write_all(self.rest(number, of).as_bytes());
    }

    /// The stamp of a message, one out of `of`, if the rest of the message is as recorded.
    pub fn check<'a>(&self, payload: &'a [u8], of: u32) -> Option<&'a Stamp> {
        let (stamp, rest) = payload.strip_prefix(BEFORE_STAMP)?.split_first_chunk()?;
        let number = message::number(stamp).filter(|number| *number < of)?;
        (rest.strip_prefix(BEHIND_STAMP)? == self.rest(number, of).as_bytes()).then_some(stamp)
    }

    fn rest(&self, number: u32, of: u32) -> &str {
        let nth = number as usize * self.messages.len() / (of as usize).max(1);
        self.messages.get(nth).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = concat!(
        r#"{"t":0.1,"from":"relay","text":"{\"type\":\"subscribe\"}"}"#,
        "\n",
        r#"{"t":0.2,"from":"upstream","text":"{\"type\":\"ticker\"}"}"#,
        "\n",
        // {"b":1}
        r#"{"t":0.3,"from":"upstream","base64":"eyJiIjoxfQ=="}"#,
    );

    fn written(recording: &Recording, number: u32, of: u32) -> String {
        let mut payload = Vec::new();
        recording.write(number, of, 34, &mut payload);
        let stamp = recording.check(&payload, of).unwrap();
        assert_eq!((message::number(stamp), message::sent(stamp)), (Some(number), Some(34)));
        String::from_utf8(payload).unwrap()
    }

    #[test]
    fn messages_are_as_recorded_behind_their_stamp() {
        let recording = Recording::parse(LINES).unwrap();
        let first = r#"{"stamp":"00000000.00000000000000000034","type":"ticker"}"#;
        assert_eq!(written(&recording, 0, 1), first);
        assert_eq!(written(&recording, 1, 2), r#"{"stamp":"00000001.00000000000000000034","b":1}"#);
        assert_eq!(written(&recording, 2, 4), r#"{"stamp":"00000002.00000000000000000034","b":1}"#);
        assert_eq!(recording.check(first.as_bytes(), 0), None);
        assert_eq!(recording.check(first.replace("tick", "kick").as_bytes(), 1), None);
        assert_eq!(recording.check(&first.as_bytes()[..20], 1), None);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        for text in ["", "{}", r#"{"from":"relay","text":"{}"}"#, r#"{"from":"upstream","text":"[1]"}"#] {
            assert!(Recording::parse(text).is_none(), "{text}");
        }
    }
}
