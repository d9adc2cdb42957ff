//! WebSocket frames (RFC 6455, section 5.2) as servers and clients send them, parsed as cheaply as possible.

use wire::frame;

use crate::failure::{Context, Failure};

/// The bit of a message's last frame.
const FIN: u8 = 0x80;
/// The first byte of a message that is one frame: FIN and the opcode.
pub const TEXT: u8 = FIN | frame::TEXT;
pub const COMPRESSED: u8 = frame::COMPRESSED;
pub const COMPRESSED_TEXT: u8 = TEXT | COMPRESSED;
pub const CLOSE: u8 = FIN | frame::CLOSE;
pub const PING: u8 = FIN | frame::PING;
pub const PONG: u8 = FIN | frame::PONG;
/// A bit of the opcode: the frame is not part of a message.
pub const CONTROL: u8 = 0x08;

const MASKED: u8 = 0x80;

pub struct Frame<'a> {
    pub first: u8,
    pub mask: Option<[u8; 4]>,
    /// As it came, masked or not.
    pub payload: &'a [u8],
}

/// The first frame of `bytes`, and what follows it. `None`: the frame is not whole.
pub fn split(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match second & !MASKED {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length), rest)
        }
        length => (u64::from(length), rest),
    };
    let (mask, rest) = match second & MASKED {
        0 => (None, rest),
        _ => {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        }
    };
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((Frame { first, mask, payload }, rest))
}

/// Appends a frame's header. A side that must mask uses zeros, so that the payload stays as it is.
pub fn header(first: u8, masked: bool, length: u16, out: &mut Vec<u8>) {
    let mask_bit = if masked { MASKED } else { 0 };
    out.push(first);
    match u8::try_from(length) {
        Ok(length @ ..126) => out.push(mask_bit | length),
        _ => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    if masked {
        out.extend_from_slice(&[0; 4]);
    }
}

/// A client's text message.
pub fn masked_text(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    header(TEXT, true, u16::try_from(text.len()).context("a message's length")?, &mut bytes);
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_once_it_is_whole() {
        for (length, masked) in [(0, false), (125, true), (126, false), (200, true), (65_535, false)] {
            let mut bytes = Vec::new();
            header(TEXT, masked, length, &mut bytes);
            bytes.extend((0..length).map(|nth| nth as u8));
            for cut in (0..bytes.len()).step_by(7) {
                assert!(split(&bytes[..cut]).is_none());
            }
            bytes.push(PING);
            let (frame, rest) = split(&bytes).unwrap();
            assert_eq!((frame.first, frame.mask, frame.payload.len()), (TEXT, masked.then_some([0; 4]), length.into()));
            assert!(frame.payload.iter().enumerate().all(|(nth, byte)| *byte == nth as u8));
            assert_eq!(rest, [PING]);
        }
    }
}
