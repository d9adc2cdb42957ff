//! The Centrifuge protocol in JSON, as much of it as a client needs that follows one channel.

/// A ping, and its answer.
pub const PING: &str = "{}";

/// What a client says, and how the reply begins if it is granted.
pub struct Command {
    pub text: &'static str,
    pub granted: &'static [u8],
}

/// The commands that let a client in, one after the other.
pub const COMMANDS: [Command; 2] = [
    Command { text: r#"{"id":1,"connect":{"name":"bench"}}"#, granted: br#"{"id":1,"connect":"# },
    Command { text: r#"{"id":2,"subscribe":{"channel":"main"}}"#, granted: br#"{"id":2,"subscribe":"# },
];

const PUSH: &[u8] = br#"{"push":{"channel":"main","pub":{"data":"#;
const OFFSET: &[u8] = br#","offset":"#;
const END: &[u8] = b"}}}";

/// What comes to a client that follows the channel.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A publication's payload.
    Message(&'a [u8]),
    Ping,
}

/// The first reply in the text of a frame, and what follows it. Payloads of `length` bytes are found without a search.
/// `None`: it is another reply.
pub fn split(text: &[u8], length: usize) -> Option<(Reply<'_>, &[u8])> {
    if let Some((payload, rest)) = publication(text, length) {
        return Some((Reply::Message(payload), rest));
    }
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (line, rest) = text.split_at_checked(end)?;
    let rest = rest.strip_prefix(b"\n").unwrap_or(rest);
    if line == PING.as_bytes() {
        return Some((Reply::Ping, rest));
    }
    let length = line.strip_prefix(PUSH)?.windows(OFFSET.len()).rposition(|window| window == OFFSET)?;
    let (payload, _) = publication(line, length)?;
    Some((Reply::Message(payload), rest))
}

/// The payload, of `length` bytes, of a publication at the start of `text`, and what follows it.
fn publication(text: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (payload, rest) = text.strip_prefix(PUSH)?.split_at_checked(length)?;
    let rest = rest.strip_prefix(OFFSET)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = rest.get(digits..)?.strip_prefix(END)?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b"\n")? };
    Some((payload, rest))
}

#[cfg(test)]
mod tests {
    use wire::{Kind, centrifuge};

    use super::*;

    fn pushed(channel: &str, key: Option<&str>, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        centrifuge::publication(channel, 12, key, false, (Kind::Text, payload), &mut out);
        out
    }

    #[test]
    fn replies_are_found_with_and_without_their_length() {
        let payload = br#"{"a":1,"offset":2}"#;
        let push = pushed("main", None, payload);
        let text = [push.as_slice(), PING.as_bytes(), &push].join(&b'\n');
        for length in [payload.len(), 0, 3, 1000] {
            let (first, rest) = split(&text, length).unwrap();
            assert_eq!(first, Reply::Message(payload));
            let (second, rest) = split(rest, length).unwrap();
            assert_eq!(second, Reply::Ping);
            assert_eq!(split(rest, length), Some((Reply::Message(payload), &b""[..])));
        }
    }

    #[test]
    fn other_replies_are_refused() {
        let ended = br#"{"push":{"channel":"main","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#;
        let push = pushed("main", None, b"1");
        let others: [&[u8]; 5] = [
            ended,
            &pushed("other", None, b"1"),
            &pushed("main", Some("key"), b"1"),
            &push[..push.len() - 1],
            &[push.as_slice(), b"}"].concat(),
        ];
        for text in others {
            assert_eq!(split(text, 1), None, "{}", String::from_utf8_lossy(text));
            assert_eq!(split(text, 0), None, "{}", String::from_utf8_lossy(text));
        }
    }
}
