//! Turns frames into messages: joins fragments, checks text, and lets control frames come in between.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::{
    Frame, Kind, deflate,
    deflate::Inflater,
    frame,
    frame::{Head, Sender, Violation},
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

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Message(Frame),
    Ping(Bytes),
    Pong,
    /// With the server's code and reason, if it gave a code.
    Close(Option<(u16, String)>),
    /// A part of a message; the rest is still to come.
    Fragment,
}

impl Received {
    fn message(kind: Kind, bytes: Bytes) -> Self {
        Self::Message(Frame { kind, bytes })
    }
}

/// What is at the start of a buffer with a server's frames.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Received(Received),
    /// A frame that is not whole. It has this many bytes with its header, or more if that is not whole either.
    Unfinished(usize),
}

/// Joins a message from its fragments.
#[derive(Debug, Default)]
pub struct Assembly {
    kind: Option<Kind>,
    /// Whether `bytes` are compressed: fragments are cut from the compressed message (RFC 7692 section 6.1).
    compressed: bool,
    /// The payloads of the fragments so far. After the last one they are the whole message, until another begins.
    bytes: Vec<u8>,
    /// How many bytes of a text are known to be UTF-8: of `bytes`, or of a frame that is a whole text and has not all
    /// come.
    checked: usize,
}

/// Bytes of a text that are worth a check before all of it has come.
const AHEAD: usize = 64 << 10;

/// A message whose last frame has come.
struct Whole {
    kind: Kind,
    compressed: bool,
    /// Its bytes are those of several frames, in the assembly. Else they are the last frame's payload.
    joined: bool,
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

    /// Takes a client's frame at the start of `buffer`. Returns what it is and how many bytes it has. `None`: it is not
    /// whole yet. Without an `inflater`, a compressed message is a violation, since compression was not agreed on.
    pub fn next<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        max_message: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Option<(Incoming<'a>, usize)>, Violation> {
        let max_payload = max_payload(max_message, inflater.is_some());
        let Some(head) = Head::parse(buffer, max_payload, inflater.is_some(), Sender::Client)? else {
            return Ok(None);
        };
        let Some(payload) = buffer.get_mut(head.start..head.end) else { return Ok(None) };
        frame::unmask(payload, head.mask.unwrap_or_default());
        let event = match head.opcode {
            frame::PING => Incoming::Ping(payload),
            frame::PONG => Incoming::Pong,
            frame::CLOSE => Incoming::Close(close(payload)?.map(|(code, _)| code)),
            _ => match self.data(&head, payload, max_message)? {
                Some(whole) => {
                    let bytes = if whole.joined { &self.bytes } else { &*payload };
                    Incoming::Message(whole.kind, whole.read(bytes, max_message, inflater)?)
                }
                None => Incoming::Fragment,
            },
        };
        Ok(Some((event, head.end)))
    }

    /// Takes a server's frame out of `buffer`, if it is whole. The payload is copied, so that nobody who has it keeps
    /// the buffer; `hands_out` says that the buffer has this frame and nothing else, and goes with it.
    pub fn take(
        &mut self,
        buffer: &mut BytesMut,
        hands_out: bool,
        max_message: usize,
        inflater: Option<&mut Inflater>,
    ) -> Result<Taken, Violation> {
        let max_payload = max_payload(max_message, inflater.is_some());
        let Some(head) = Head::parse(buffer, max_payload, inflater.is_some(), Sender::Server)? else {
            return Ok(Taken::Unfinished(0));
        };
        if buffer.len() < head.end {
            if head.opcode == frame::TEXT && head.fin && !head.compressed && self.kind.is_none() {
                let unchecked = buffer.get(head.start + self.checked..).unwrap_or_default();
                if unchecked.len() >= AHEAD {
                    self.checked += utf8(unchecked, false)?;
                }
            }
            return Ok(Taken::Unfinished(head.end));
        }
        let payload = buffer.get(head.start..head.end).unwrap_or_default();
        let received = match head.opcode {
            frame::PING => Received::Ping(Bytes::copy_from_slice(payload)),
            frame::PONG => Received::Pong,
            frame::CLOSE => Received::Close(close(payload)?.map(|(code, reason)| (code, reason.to_owned()))),
            _ => match self.data(&head, payload, max_message)? {
                Some(whole) => {
                    let mut joined = if whole.joined { std::mem::take(&mut self.bytes) } else { Vec::new() };
                    joined.shrink_to_fit();
                    let bytes = if whole.joined { &joined } else { payload };
                    let bytes = match inflater.filter(|_| whole.compressed) {
                        Some(inflater) => {
                            whole.read(bytes, max_message, Some(&mut *inflater))?;
                            inflater.hand_out().into()
                        }
                        None => {
                            whole.read(bytes, max_message, None)?;
                            match (whole.joined, hands_out) {
                                (true, _) => joined.into(),
                                (false, true) => {
                                    let mut own = std::mem::take(buffer);
                                    own.advance(head.start);
                                    return Ok(Taken::Received(Received::message(whole.kind, own.freeze())));
                                }
                                (false, false) => Bytes::copy_from_slice(payload),
                            }
                        }
                    };
                    Received::message(whole.kind, bytes)
                }
                None => Received::Fragment,
            },
        };
        buffer.advance(head.end);
        Ok(Taken::Received(received))
    }

    /// Takes a frame of a message. Returns the message if this was its last frame.
    fn data(&mut self, head: &Head, payload: &[u8], max_message: usize) -> Result<Option<Whole>, Violation> {
        let starts = match head.opcode {
            frame::TEXT => Some(Kind::Text),
            frame::BINARY => Some(Kind::Binary),
            _ => None,
        };
        match (starts, self.kind) {
            (Some(_), Some(_)) => return Err(Violation::Protocol("a message begins inside another")),
            (None, None) => return Err(Violation::Protocol("a continuation of no message")),
            (Some(kind), None) if head.fin => {
                let checked = std::mem::take(&mut self.checked);
                return Ok(Some(Whole { kind, compressed: head.compressed, joined: false, checked }));
            }
            (Some(kind), None) => {
                self.kind = Some(kind);
                self.compressed = head.compressed;
                self.bytes.clear();
                self.checked = 0;
            }
            (None, Some(_)) => {}
        }
        if self.bytes.len() + payload.len() > max_payload(max_message, self.compressed) {
            return Err(Violation::TooLarge);
        }
        self.bytes.extend_from_slice(payload);
        if self.kind == Some(Kind::Text) && !self.compressed {
            self.check_text(head.fin)?;
        }
        if !head.fin {
            return Ok(None);
        }
        let kind = self.kind.take().unwrap_or(Kind::Binary);
        let checked = std::mem::take(&mut self.checked);
        Ok(Some(Whole { kind, compressed: self.compressed, joined: true, checked }))
    }

    /// Checks the bytes of a text that are new. A fragment may end within a character; the message may not.
    fn check_text(&mut self, fin: bool) -> Result<(), Violation> {
        self.checked += utf8(self.bytes.get(self.checked..).unwrap_or_default(), fin)?;
        Ok(())
    }
}

/// Checks a part of a text. Returns how many bytes of it are UTF-8: all, or all but a character that is not whole yet.
/// `last`: nothing follows.
fn utf8(bytes: &[u8], last: bool) -> Result<usize, Violation> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes.len()),
        Err(error) if !last && error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(Violation::Utf8),
    }
}

/// The most bytes of payload that a message of `max_message` bytes comes in.
fn max_payload(max_message: usize, compressed: bool) -> usize {
    if compressed { deflate::bound(max_message) } else { max_message }
}

impl Whole {
    /// Inflates the message if it is compressed, and checks it.
    fn read<'a>(
        &self,
        bytes: &'a [u8],
        max_message: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<&'a [u8], Violation> {
        let message = match inflater.filter(|_| self.compressed) {
            Some(inflater) => inflater.inflate(bytes, max_message)?,
            None => bytes,
        };
        if message.len() > max_message {
            return Err(Violation::TooLarge);
        }
        if self.kind == Kind::Text {
            // What is compressed was not checked as it came.
            utf8(message.get(self.checked..).unwrap_or_default(), true)?;
        }
        Ok(message)
    }
}

/// Reads the payload of a close frame, RFC 6455 section 7.4.
fn close(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    match *payload {
        [] => Ok(None),
        [_] => Err(Violation::Protocol("a close code has two bytes")),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !frame::may_close_with(code) {
                return Err(Violation::Protocol("not a close code that may be sent"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
            Ok(Some((code, reason)))
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

    /// Feeds whole frames of a server, and returns how each was taken.
    fn received(frames: &[(u8, &[u8])], mut inflater: Option<&mut Inflater>) -> Vec<String> {
        let mut assembly = Assembly::default();
        let mut buffer = BytesMut::new();
        for (first, payload) in frames {
            buffer.extend_from_slice(&[*first, u8::try_from(payload.len()).unwrap()]);
            buffer.extend_from_slice(payload);
        }
        let mut out = Vec::new();
        loop {
            match assembly.take(&mut buffer, false, 50, inflater.as_deref_mut()) {
                Ok(Taken::Received(received)) => out.push(format!("{received:?}")),
                Ok(Taken::Unfinished(length)) => {
                    assert_eq!((length, buffer.len()), (0, 0));
                    return out;
                }
                Err(why) => {
                    out.push(why.close_code().to_string());
                    return out;
                }
            }
        }
    }

    #[test]
    fn a_servers_frames_are_joined_too() {
        let frames: [(u8, &[u8]); 6] =
            [(0x81, b"a"), (0x01, b"a\xC3"), (0x89, b"hi"), (0x80, b"\xA9"), (0x8A, b""), (0x88, b"\x03\xE8bye")];
        let message = |text: &'static [u8]| Frame { kind: Kind::Text, bytes: Bytes::from_static(text) };
        let expected = [
            Received::Message(message(b"a")),
            Received::Fragment,
            Received::Ping(Bytes::from_static(b"hi")),
            Received::Message(message("a\u{e9}".as_bytes())),
            Received::Pong,
            Received::Close(Some((1000, "bye".into()))),
        ];
        assert_eq!(received(&frames, None), expected.map(|received| format!("{received:?}")));
        assert_eq!(received(&[(0x81, b"\xFF")], None), ["1007"]);
        assert_eq!(received(&[(0x82, &[0; 51])], None), ["1009"]);
        assert_eq!(received(&[(0xC1, b"a")], None), ["1002"]);
    }

    #[test]
    fn a_server_may_keep_its_window() {
        // RFC 7692 section 7.2.3.2: "Hello" twice, the second time with the first one's window.
        let (first, second): (&[u8], &[u8]) =
            (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]);
        let twice = [(0xC1, first), (0xC1, second), (0x41, &second[..2]), (0x80, &second[2..])];
        let hello = format!("{:?}", Received::Message(Frame { kind: Kind::Text, bytes: Bytes::from_static(b"Hello") }));
        let taken = received(&twice, Some(&mut Inflater::with_context()));
        assert_eq!(taken, [&*hello, &*hello, "Fragment", &*hello]);
        assert_eq!(received(&twice[..2], Some(&mut Inflater::default())), [&*hello, "1007"]);
    }

    #[test]
    fn a_buffer_may_go_with_its_message() {
        let mut buffer = BytesMut::from(&b"\x82\x03abc"[..]);
        let start = buffer.as_ptr().addr();
        let taken = Assembly::default().take(&mut buffer, true, 10, None);
        let Ok(Taken::Received(Received::Message(Frame { bytes, .. }))) = taken else { panic!("{taken:?}") };
        assert_eq!((&bytes[..], bytes.as_ptr().addr()), (&b"abc"[..], start + 2));
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn a_frame_that_is_not_whole_says_how_long_it_is() {
        let mut assembly = Assembly::default();
        let mut buffer = BytesMut::from(&[0x82, 126, 0x10][..]);
        assert_eq!(assembly.take(&mut buffer, false, 10_000, None), Ok(Taken::Unfinished(0)));
        buffer.extend_from_slice(&[0x00, 1, 2]);
        assert_eq!(assembly.take(&mut buffer, false, 10_000, None), Ok(Taken::Unfinished(4 + 0x1000)));
        assert_eq!(buffer.len(), 6);
    }

    proptest! {
        #[test]
        fn a_servers_arbitrary_bytes_never_panic_nor_hang(bytes: Vec<u8>, agreed: bool) {
            let mut assembly = Assembly::default();
            let mut inflater = agreed.then(Inflater::with_context);
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut left = buffer.len();
            while let Ok(Taken::Received(_)) = assembly.take(&mut buffer, false, 64, inflater.as_mut()) {
                prop_assert!(buffer.len() <= left - 2);
                left = buffer.len();
            }
        }

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
