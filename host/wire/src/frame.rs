//! WebSocket frames, RFC 6455 section 5.2: encodes the relay's frames, and parses those of clients and of partners.

use crate::Kind;

/// Opcodes, RFC 6455 section 11.8.
pub(crate) const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// Largest payload of a control frame, section 5.5.
pub const MAX_CONTROL: usize = 125;

/// A bit beside the opcode: the message's payload is compressed (RSV1, RFC 7692 section 6).
pub const COMPRESSED: u8 = 0x40;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// Bytes of the header in front of an unmasked payload of this length.
pub fn header_len(payload: usize) -> usize {
    match payload {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends one whole unmasked frame, as a server sends it.
pub fn encode(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    encode_header(opcode, 0, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends what comes before the payload of an unmasked frame.
pub fn encode_head(opcode: u8, payload: usize, out: &mut Vec<u8>) {
    encode_header(opcode, 0, payload, out);
}

/// Appends one whole frame as a client sends it. Nobody may be able to predict its mask (section 10.3).
pub fn encode_masked(opcode: u8, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    encode_header(opcode, MASKED, payload.len(), out);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(out.get_mut(start..).unwrap_or_default(), mask);
}

fn encode_header(opcode: u8, masked: u8, length: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short <= 125 => out.push(masked | short),
        (_, Ok(medium)) => {
            out.push(masked | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Reads back a data frame that [`encode`] wrote.
pub fn decode(encoded: &[u8]) -> Option<(Kind, &[u8])> {
    let kind = if encoded.first()? & 0x0F == TEXT { Kind::Text } else { Kind::Binary };
    let header = match encoded.get(1)? {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    Some((kind, encoded.get(header..)?))
}

/// Whether an endpoint may send this close code, RFC 6455 section 7.4.
pub fn may_close_with(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A close frame. A reason too long for the frame is cut.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let payload = close_payload(code, reason);
    let mut out = Vec::with_capacity(2 + payload.len());
    encode(CLOSE, &payload, &mut out);
    out
}

/// What a close frame carries.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.get(..reason.floor_char_boundary(MAX_CONTROL - 2)).unwrap_or_default().as_bytes());
    payload
}

/// Who sends the frames that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// It masks every frame (RFC 6455 section 5.1).
    Client,
    /// It masks none.
    Server,
}

/// How the other side broke the protocol. Each has its close code (RFC 6455 section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{0}")]
    Protocol(&'static str),
    #[error("text that is not UTF-8")]
    Utf8,
    #[error("a message larger than accepted here")]
    TooLarge,
    #[error("compressed data that cannot be read")]
    Deflate,
}

impl Violation {
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Utf8 | Self::Deflate => 1007,
            Self::TooLarge => 1009,
        }
    }
}

/// The header of the frame at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub fin: bool,
    /// Whether the message is compressed. Only its first frame says so.
    pub compressed: bool,
    pub opcode: u8,
    /// `None`: a server has sent it.
    pub mask: Option<[u8; 4]>,
    /// Where the payload begins in the buffer.
    pub start: usize,
    /// Where the payload ends, which is the length of the whole frame.
    pub end: usize,
}

impl Head {
    /// Parses a frame's header. `None`: more bytes are needed. A payload over `max_payload` is refused here, before any
    /// of it is stored. A message may be compressed only if that was agreed on (`may_compress`).
    pub fn parse(
        buffer: &[u8],
        max_payload: usize,
        may_compress: bool,
        sender: Sender,
    ) -> Result<Option<Self>, Violation> {
        let [first, second, ..] = *buffer else { return Ok(None) };
        let (fin, opcode) = (first & FIN != 0, first & 0x0F);
        let compressed = match first & RESERVED {
            0 => false,
            COMPRESSED if may_compress && matches!(opcode, TEXT | BINARY) => true,
            _ => return Err(Violation::Protocol("a reserved bit is set")),
        };
        match (sender, second & MASKED) {
            (Sender::Client, 0) => return Err(Violation::Protocol("a client's frame must be masked")),
            (Sender::Client, _) | (Sender::Server, 0) => {}
            (Sender::Server, _) => return Err(Violation::Protocol("a server's frame must not be masked")),
        }
        let control = match opcode {
            CONTINUATION | TEXT | BINARY => false,
            CLOSE | PING | PONG => true,
            _ => return Err(Violation::Protocol("unknown opcode")),
        };
        if control && (!fin || usize::from(second & !MASKED) > MAX_CONTROL) {
            return Err(Violation::Protocol("a control frame must be whole and have at most 125 bytes"));
        }
        let (length, mask_at) = match second & !MASKED {
            126 => match buffer.get(2..4).and_then(|bytes| bytes.try_into().ok()) {
                Some(bytes) => (u64::from(u16::from_be_bytes(bytes)), 4),
                None => return Ok(None),
            },
            127 => match buffer.get(2..10).and_then(|bytes| bytes.try_into().ok()) {
                Some(bytes) => (u64::from_be_bytes(bytes), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        if (second & !MASKED == 126 && length < 126) || (second & !MASKED == 127 && length <= 0xFFFF) {
            return Err(Violation::Protocol("a length is not in its shortest form"));
        }
        if length >> 63 != 0 {
            return Err(Violation::Protocol("a length's highest bit is set"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !control && length > max_payload {
            return Err(Violation::TooLarge);
        }
        let (mask, start) = match (sender, buffer.get(mask_at..mask_at + 4).map(TryInto::try_into)) {
            (Sender::Server, _) => (None, mask_at),
            (Sender::Client, Some(Ok(mask))) => (Some(mask), mask_at + 4),
            (Sender::Client, _) => return Ok(None),
        };
        Ok(Some(Self { fin, compressed, opcode, mask, start, end: start + length }))
    }
}

/// Applies a mask (section 5.3) in place.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::FrameSocket;

    use super::*;

    #[test]
    fn lengths_take_the_form_the_rfc_says() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = Vec::new();
            encode(BINARY, &vec![7; length], &mut out);
            assert_eq!(out.len(), header + length);
            assert_eq!(header_len(length), header);
        }
    }

    #[test]
    fn violations_are_found_in_the_header() {
        let check = |bytes: &[u8]| Head::parse(bytes, 1000, false, Sender::Client);
        assert_eq!(check(&[0x81]), Ok(None));
        assert_eq!(check(&[0x81, 0xFE, 0x00]), Ok(None));
        assert!(matches!(check(&[0xC1, 0x80]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x83, 0x80]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x81, 0x00]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x09, 0x80]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x89, 0xFE]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x82, 0xFE, 0, 125]), Err(Violation::Protocol(_))));
        assert!(matches!(check(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), Err(Violation::Protocol(_))));
        assert_eq!(check(&[0x82, 0xFE, 0x03, 0xE9]), Err(Violation::TooLarge));
    }

    #[test]
    fn a_server_masks_nothing() {
        let check = |bytes: &[u8]| Head::parse(bytes, 1000, false, Sender::Server);
        assert_eq!(check(&[0x81, 0x82]), Err(Violation::Protocol("a server's frame must not be masked")));
        let head = check(&[0x81, 0x02]).unwrap().unwrap();
        assert_eq!((head.mask, head.start, head.end), (None, 2, 4));
        let head = check(&[0x82, 126, 0x03, 0xE8]).unwrap().unwrap();
        assert_eq!((head.start, head.end), (4, 1004));
    }

    #[test]
    fn only_the_first_frame_of_a_message_is_marked_as_compressed() {
        let compressed = |first: u8, agreed| {
            Head::parse(&[first, 0x80, 0, 0, 0, 0], 10, agreed, Sender::Client).map(|head| head.unwrap().compressed)
        };
        for first in [0xC1, 0xC2, 0x41, 0x42] {
            assert_eq!(compressed(first, true), Ok(true));
            assert!(matches!(compressed(first, false), Err(Violation::Protocol(_))));
        }
        for first in [0x81, 0x02, 0x80, 0x89] {
            assert_eq!(compressed(first, true), Ok(false));
        }
        for first in [0xC0, 0x40, 0xC8, 0xC9, 0xCA, 0xA1, 0x91, 0xE1] {
            assert!(matches!(compressed(first, true), Err(Violation::Protocol(_))));
        }
        let mut frame = Vec::new();
        encode(TEXT | COMPRESSED, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &mut frame);
        // RFC 7692 section 7.2.3.1.
        assert_eq!(frame, [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let frame = close(1013, &"é".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }

    proptest! {
        #[test]
        fn another_implementation_reads_what_is_encoded(payload: Vec<u8>) {
            let mut out = Vec::new();
            encode(BINARY, &payload, &mut out);
            prop_assert_eq!(decode(&out), Some((Kind::Binary, &payload[..])));
            let mut socket = FrameSocket::new(std::io::Cursor::new(out));
            let frame = socket.read(None).unwrap().unwrap();
            prop_assert_eq!(frame.payload(), &payload[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, max in 0usize..100_000, agreed: bool, masked: bool) {
            let sender = if masked { Sender::Client } else { Sender::Server };
            if let Ok(Some(head)) = Head::parse(&bytes, max, agreed, sender) {
                prop_assert!(head.start <= head.end);
                prop_assert!(head.end - head.start <= max.max(MAX_CONTROL));
            }
        }

        #[test]
        fn another_implementation_reads_what_is_masked(payload: Vec<u8>, mask: [u8; 4]) {
            let mut out = Vec::new();
            encode_masked(TEXT, &payload, mask, &mut out);
            let head = Head::parse(&out, payload.len(), false, Sender::Client).unwrap().unwrap();
            prop_assert_eq!((head.end, head.mask), (out.len(), Some(mask)));
            let mut frame = FrameSocket::new(std::io::Cursor::new(out)).read(None).unwrap().unwrap().into_payload().to_vec();
            unmask(&mut frame, mask);
            prop_assert_eq!(frame, payload);
        }

        #[test]
        fn unmasking_twice_is_nothing(payload: Vec<u8>, mask: [u8; 4]) {
            let mut twice = payload.clone();
            unmask(&mut twice, mask);
            for (index, byte) in payload.iter().enumerate() {
                prop_assert_eq!(twice[index], byte ^ mask[index % 4]);
            }
            unmask(&mut twice, mask);
            prop_assert_eq!(twice, payload);
        }
    }
}
