//! From a client's frames to its messages: fragments joined, text checked, control frames in between.

use crate::{
    channel::Kind,
    client::frame::{self, Head, Violation},
};

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Message(Kind, &'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The code it gave, if any.
    Close(Option<u16>),
    /// Part of a message whose rest is to come.
    Fragment,
}

/// A message of which fragments have arrived.
#[derive(Debug, Default)]
pub struct Assembly {
    kind: Option<Kind>,
    /// Complete when the last event was a message, and then dropped by the next call.
    bytes: Vec<u8>,
    /// How much of a text is known to be UTF-8.
    checked: usize,
}

impl Assembly {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.kind.is_none()
    }

    /// Takes the frame in front of `buffer`; returns it and how many bytes it had. `None`: it is not whole yet.
    pub fn next<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        max_message: usize,
    ) -> Result<Option<(Event<'a>, usize)>, Violation> {
        let Some(head) = Head::parse(buffer, max_message)? else { return Ok(None) };
        let Some(payload) = buffer.get_mut(head.start..head.end) else { return Ok(None) };
        frame::unmask(payload, head.mask);
        let event = match head.opcode {
            frame::PING => Event::Ping(payload),
            frame::PONG => Event::Pong,
            frame::CLOSE => Event::Close(close_code(payload)?),
            opcode => self.data(opcode, head.fin, payload, max_message)?,
        };
        Ok(Some((event, head.end)))
    }

    fn data<'a>(
        &'a mut self,
        opcode: u8,
        fin: bool,
        payload: &'a [u8],
        max_message: usize,
    ) -> Result<Event<'a>, Violation> {
        let starts = match opcode {
            frame::TEXT => Some(Kind::Text),
            frame::BINARY => Some(Kind::Binary),
            _ => None,
        };
        match (starts, self.kind) {
            (Some(_), Some(_)) => return Err(Violation::Protocol("a message begins inside another")),
            (None, None) => return Err(Violation::Protocol("a continuation of no message")),
            (Some(kind), None) if fin => {
                if kind == Kind::Text && std::str::from_utf8(payload).is_err() {
                    return Err(Violation::Utf8);
                }
                return Ok(Event::Message(kind, payload));
            }
            (Some(kind), None) => {
                self.kind = Some(kind);
                self.bytes.clear();
                self.checked = 0;
            }
            (None, Some(_)) => {}
        }
        if self.bytes.len() + payload.len() > max_message {
            return Err(Violation::TooLarge);
        }
        self.bytes.extend_from_slice(payload);
        if self.kind == Some(Kind::Text) {
            self.check_text(fin)?;
        }
        if !fin {
            return Ok(Event::Fragment);
        }
        let kind = self.kind.take().unwrap_or(Kind::Binary);
        Ok(Event::Message(kind, &self.bytes))
    }

    /// A character may be cut by a fragment's end, not by the message's.
    fn check_text(&mut self, fin: bool) -> Result<(), Violation> {
        let unchecked = self.bytes.get(self.checked..).unwrap_or_default();
        match std::str::from_utf8(unchecked) {
            Ok(_) => self.checked = self.bytes.len(),
            Err(error) if !fin && error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        }
        Ok(())
    }
}

/// RFC 6455 section 7.4: what may stand in a close frame.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    match *payload {
        [] => Ok(None),
        [_] => Err(Violation::Protocol("a close code has two bytes")),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Violation::Protocol("not a close code that may be sent"));
            }
            if std::str::from_utf8(reason).is_err() {
                return Err(Violation::Utf8);
            }
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 1, 2, 3, 4];
        let mut payload = payload.to_vec();
        frame::unmask(&mut payload, [1, 2, 3, 4]);
        out.extend_from_slice(&payload);
        out
    }

    /// Feeds whole frames, returns how each was taken.
    fn events(frames: &[Vec<u8>]) -> Vec<String> {
        let mut assembly = Assembly::default();
        let mut out = Vec::new();
        for frame in frames {
            let mut frame = frame.clone();
            match assembly.next(&mut frame, 50) {
                Ok(event) => out.push(format!("{:?}", event.unwrap().0)),
                Err(why) => out.push(format!("{}", why.close_code())),
            }
        }
        out
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        let frames = [masked(0x01, b"a\xC3"), masked(0x89, b"hi"), masked(0x80, b"\xA9b"), masked(0x8A, b"")];
        assert_eq!(events(&frames), ["Fragment", "Ping([104, 105])", "Message(Text, [97, 195, 169, 98])", "Pong"]);
    }

    #[test]
    fn broken_messages_have_their_close_code() {
        assert_eq!(events(&[masked(0x80, b"a")]), ["1002"]);
        assert_eq!(events(&[masked(0x01, b"a"), masked(0x81, b"a")]), ["Fragment", "1002"]);
        assert_eq!(events(&[masked(0x81, b"\xFF")]), ["1007"]);
        assert_eq!(events(&[masked(0x01, b"\xC3"), masked(0x00, b"a")]), ["Fragment", "1007"]);
        assert_eq!(events(&[masked(0x01, b"a"), masked(0x80, b"\xC3")]), ["Fragment", "1007"]);
        assert_eq!(events(&[masked(0x82, &[0; 51])]), ["1009"]);
        assert_eq!(events(&[masked(0x02, &[0; 30]), masked(0x80, &[0; 30])]), ["Fragment", "1009"]);
    }

    #[test]
    fn close_codes_are_checked() {
        assert_eq!(events(&[masked(0x88, b"")]), ["Close(None)"]);
        assert_eq!(events(&[masked(0x88, &[3, 232])]), ["Close(Some(1000))"]);
        assert_eq!(events(&[masked(0x88, &[3])]), ["1002"]);
        assert_eq!(events(&[masked(0x88, &[3, 238])]), ["1002"]);
        assert_eq!(events(&[masked(0x88, &[3, 232, 0xFF])]), ["1007"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_hang(mut bytes: Vec<u8>) {
            let mut assembly = Assembly::default();
            let mut at = 0;
            while let Ok(Some((_, taken))) = assembly.next(&mut bytes[at..], 64) {
                prop_assert!(taken >= 6);
                at += taken;
            }
        }
    }
}
