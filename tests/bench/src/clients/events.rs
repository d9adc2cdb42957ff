//! Server-sent events (WHATWG HTML, section 9.2), as the relay writes them.

const ID: &[u8] = b"id: ";
const DATA: &[u8] = b"data: ";
/// The end of an event: that of its last line, and an empty line.
const END: &[u8] = b"\n\n";

/// The first event or comment of `bytes`, and what follows it. `None`: it is not whole. Payloads of `length` bytes are
/// found without a search. An event without a line of data has no payload.
pub fn split(bytes: &[u8], length: usize) -> Option<(Option<&[u8]>, &[u8])> {
    if let Some((payload, rest)) = message(bytes, length) {
        return Some((Some(payload), rest));
    }
    let end = bytes.windows(END.len()).position(|window| window == END)?;
    let (event, rest) = bytes.split_at_checked(end)?;
    let payload = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(DATA));
    Some((payload, rest.strip_prefix(END)?))
}

/// The payload, of `length` bytes, of a message at the start of `bytes`, and what follows it.
fn message(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(ID)?;
    let id = rest.iter().position(|byte| *byte == b'\n')?;
    let (payload, rest) = rest.get(id + 1..)?.strip_prefix(DATA)?.split_at_checked(length)?;
    Some((payload, rest.strip_prefix(END)?))
}

#[cfg(test)]
mod tests {
    use wire::{Kind, Position, sse};

    use super::*;

    #[test]
    fn events_are_found_once_they_are_whole_with_and_without_their_length() {
        let position: Position = "1a:12".parse().unwrap();
        let payload = br#"{"a":1}"#;
        let mut bytes = Vec::new();
        sse::hello(&[], [&position].into_iter(), &mut bytes);
        let hello = bytes.len();
        bytes.extend_from_slice(sse::KEEP_ALIVE);
        let first = bytes.len();
        sse::event(position, Kind::Text, payload, &mut bytes);
        for length in [payload.len(), 0, 3, 1000] {
            let (nothing, rest) = split(&bytes, length).unwrap();
            assert_eq!((nothing, rest), (None, &bytes[hello..]));
            let (nothing, rest) = split(rest, length).unwrap();
            assert_eq!((nothing, rest), (None, &bytes[first..]));
            assert_eq!(split(rest, length), Some((Some(&payload[..]), &b""[..])));
            for cut in 0..rest.len() {
                assert_eq!(split(&rest[..cut], length), None);
            }
        }
    }

    #[test]
    fn a_gap_is_not_passed_over() {
        let mut bytes = Vec::new();
        sse::gap("main", None, &mut bytes);
        assert_eq!(split(&bytes, 200), Some((Some(&br#"{"channel":"main"}"#[..]), &b""[..])));
    }
}
