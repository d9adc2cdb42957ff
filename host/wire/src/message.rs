//! Turns a client's frames into messages: joins fragments, checks text, and lets control frames come in between.

use crate::{
    Kind, deflate,
    deflate::Inflater,
    frame,
    frame::{Head, Violation},
};

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    Message(Kind, &'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// With the client's code, if it gave one.
    Close(Option<u16>),
    /// A part of a message; the rest is still to come.
    Fragment,
}

/// Joins a message from its fragments.
#[derive(Debug, Default)]
pub struct Assembly {
    kind: Option<Kind>,
    /// Whether `bytes` are compressed: fragments are cut from the compressed message (RFC 7692 section 6.1).
    compressed: bool,
    /// The payloads of the fragments so far. After the last one they are the whole message, until another begins.
    bytes: Vec<u8>,
    /// How many bytes of a text are known to be UTF-8.
    checked: usize,
}

impl Assembly {
    /// Whether no message is under way, so that nothing has to be kept.
    pub fn is_empty(&self) -> bool {
        self.kind.is_none()
    }

    /// Bytes of memory that it has taken.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes the frame at the start of `buffer`. Returns what it is and how many bytes it has. `None`: it is not whole
    /// yet. Without an `inflater`, a compressed message is a violation, since compression was not agreed on.
    pub fn next<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        max_message: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Option<(Incoming<'a>, usize)>, Violation> {
        let max_payload = if inflater.is_some() { deflate::bound(max_message) } else { max_message };
        let Some(head) = Head::parse(buffer, max_payload, inflater.is_some())? else { return Ok(None) };
        let Some(payload) = buffer.get_mut(head.start..head.end) else { return Ok(None) };
        frame::unmask(payload, head.mask);
        let event = match head.opcode {
            frame::PING => Incoming::Ping(payload),
            frame::PONG => Incoming::Pong,
            frame::CLOSE => Incoming::Close(close_code(payload)?),
            _ => self.data(head, payload, max_message, inflater)?,
        };
        Ok(Some((event, head.end)))
    }

    fn data<'a>(
        &'a mut self,
        head: Head,
        payload: &'a [u8],
        max_message: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Incoming<'a>, Violation> {
        let starts = match head.opcode {
            frame::TEXT => Some(Kind::Text),
            frame::BINARY => Some(Kind::Binary),
            _ => None,
        };
        match (starts, self.kind) {
            (Some(_), Some(_)) => return Err(Violation::Protocol("a message begins inside another")),
            (None, None) => return Err(Violation::Protocol("a continuation of no message")),
            (Some(kind), None) if head.fin => {
                let inflater = inflater.filter(|_| head.compressed);
                return Ok(Incoming::Message(kind, whole(kind, payload, max_message, inflater)?));
            }
            (Some(kind), None) => {
                self.kind = Some(kind);
                self.compressed = head.compressed;
                self.bytes.clear();
                self.checked = 0;
            }
            (None, Some(_)) => {}
        }
        let max_bytes = if self.compressed { deflate::bound(max_message) } else { max_message };
        if self.bytes.len() + payload.len() > max_bytes {
            return Err(Violation::TooLarge);
        }
        self.bytes.extend_from_slice(payload);
        if self.kind == Some(Kind::Text) && !self.compressed {
            self.check_text(head.fin)?;
        }
        if !head.fin {
            return Ok(Incoming::Fragment);
        }
        let kind = self.kind.take().unwrap_or(Kind::Binary);
        if self.compressed {
            return Ok(Incoming::Message(kind, whole(kind, &self.bytes, max_message, inflater)?));
        }
        Ok(Incoming::Message(kind, &self.bytes))
    }

    /// Checks the bytes of a text that are new. A fragment may end within a character; the message may not.
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

/// Checks a message that came in one frame, or compressed in fragments. With an inflater it is compressed.
fn whole<'a>(
    kind: Kind,
    payload: &'a [u8],
    max_message: usize,
    inflater: Option<&'a mut Inflater>,
) -> Result<&'a [u8], Violation> {
    let message = match inflater {
        Some(inflater) => inflater.inflate(payload, max_message)?,
        None => payload,
    };
    if message.len() > max_message {
        return Err(Violation::TooLarge);
    }
    if kind == Kind::Text && std::str::from_utf8(message).is_err() {
        return Err(Violation::Utf8);
    }
    Ok(message)
}

/// Reads the payload of a close frame, RFC 6455 section 7.4.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    match *payload {
        [] => Ok(None),
        [_] => Err(Violation::Protocol("a close code has two bytes")),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !frame::may_close_with(code) {
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
    use proptest::prelude::*;

    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first, 0x80 | u8::try_from(payload.len()).unwrap(), 1, 2, 3, 4];
        let mut payload = payload.to_vec();
        frame::unmask(&mut payload, [1, 2, 3, 4]);
        out.extend_from_slice(&payload);
        out
    }

    /// Feeds whole frames and returns how each was taken.
    fn events(frames: &[Vec<u8>]) -> Vec<String> {
        events_with(frames, None)
    }

    fn events_with(frames: &[Vec<u8>], mut inflater: Option<&mut Inflater>) -> Vec<String> {
        let mut assembly = Assembly::default();
        let mut out = Vec::new();
        for frame in frames {
            let mut frame = frame.clone();
            match assembly.next(&mut frame, 50, inflater.as_deref_mut()) {
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

    /// The events of a connection that has agreed on compression.
    fn agreed(frames: &[Vec<u8>]) -> Vec<String> {
        events_with(frames, Some(&mut Inflater::default()))
    }

    fn deflated(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        deflate::deflate(payload, 15, &mut out);
        out
    }

    #[test]
    fn compressed_messages_are_inflated() {
        let hello = deflated(b"hi");
        assert_eq!(agreed(&[masked(0xC1, &hello)]), ["Message(Text, [104, 105])"]);
        assert_eq!(agreed(&[masked(0xC2, &[0])]), ["Message(Binary, [])"]);
        assert_eq!(agreed(&[masked(0x81, b"hi")]), ["Message(Text, [104, 105])"]);
        assert_eq!(events(&[masked(0xC1, &hello)]), ["1002"]);
        // Fragments cut anywhere, with a control frame between them; then a message that is not compressed.
        for cut in 0..=hello.len() {
            let frames = [
                masked(0x41, &hello[..cut]),
                masked(0x89, b""),
                masked(0x80, &hello[cut..]),
                masked(0x02, b"a"),
                masked(0x80, b"b"),
            ];
            let message = "Message(Text, [104, 105])";
            assert_eq!(agreed(&frames), ["Fragment", "Ping([])", message, "Fragment", "Message(Binary, [97, 98])"]);
        }
    }

    #[test]
    fn broken_compressed_messages_have_their_close_code() {
        let hello = deflated(b"hi");
        assert_eq!(agreed(&[masked(0xC0, &hello)]), ["1002"]);
        assert_eq!(agreed(&[masked(0x41, &hello), masked(0xC0, &[])]), ["Fragment", "1002"]);
        assert_eq!(agreed(&[masked(0xC9, &hello)]), ["1002"]);
        assert_eq!(agreed(&[masked(0xC1, &[0xFF])]), ["1007"]);
        assert_eq!(agreed(&[masked(0xC1, &deflated(b"\xFF"))]), ["1007"]);
        assert_eq!(agreed(&[masked(0x41, &deflated(b"\xC3")), masked(0x80, &[])]), ["Fragment", "1007"]);
        assert_eq!(agreed(&[masked(0xC2, &deflated(&[0; 51]))]), ["1009"]);
        assert_eq!(agreed(&[masked(0x82, &[0; 51])]), ["1009"]);
        assert_eq!(agreed(&[masked(0x42, &[0; 70]), masked(0x80, &[0; 70])]), ["Fragment", "1009"]);
    }

    #[test]
    fn a_message_that_compression_makes_longer_is_as_large_as_it_is() {
        let noise: Vec<u8> = (0..50u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let compressed = deflated(&noise);
        assert!(compressed.len() > 50);
        assert_eq!(agreed(&[masked(0xC2, &compressed)]), [format!("Message(Binary, {noise:?})")]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_hang(mut bytes: Vec<u8>, agreed: bool) {
            let mut assembly = Assembly::default();
            let mut inflater = agreed.then(Inflater::default);
            let mut at = 0;
            while let Ok(Some((_, taken))) = assembly.next(&mut bytes[at..], 64, inflater.as_mut()) {
                prop_assert!(taken >= 6);
                at += taken;
            }
        }
    }
}
