//! The agreement on compression in the handshake, RFC 7692 section 7.1.

use http::{
    HeaderMap,
    header::{HeaderValue, SEC_WEBSOCKET_EXTENSIONS},
};

use crate::deflate::{MAX_WINDOW_BITS, MIN_WINDOW_BITS};

const NAME: &str = "permessage-deflate";
const SERVER_NO_CONTEXT: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT: &str = "client_no_context_takeover";
const SERVER_WINDOW: &str = "server_max_window_bits";
const CLIENT_WINDOW: &str = "client_max_window_bits";

/// An agreement to compress messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The largest window that messages to the client may be compressed with.
    pub window_bits: u8,
    /// The answer's `Sec-WebSocket-Extensions`.
    pub answer: HeaderValue,
}

/// Takes the first acceptable offer. `None`: there is none, or the header cannot be read. Messages are then sent as
/// they are, which is no error.
///
/// The answer always says that no context is kept for a client, asked for or not (section 7.1.1.2). The client's own
/// window does not matter: messages are inflated with the largest.
pub fn negotiate(headers: &HeaderMap) -> Option<Agreed> {
    let named = extensions(headers)?;
    // zlib has no raw stream with a window of 8 bits, so this side cannot send one.
    let can_send = |offer: &Offer| offer.server_window.is_none_or(|bits| bits >= MIN_WINDOW_BITS);
    let mut offers = named.iter().filter(|extension| extension.is_deflate()).filter_map(Extension::offer);
    let asked = offers.find(can_send)?.server_window;
    let window = asked.map(|bits| format!("; {SERVER_WINDOW}={bits}")).unwrap_or_default();
    let answer = HeaderValue::try_from(format!("{NAME}; {SERVER_NO_CONTEXT}; {CLIENT_NO_CONTEXT}{window}")).ok()?;
    Some(Agreed { window_bits: asked.unwrap_or(MAX_WINDOW_BITS), answer })
}

/// What this side offers as a client. It compresses nothing itself, so a server need keep no context for it, and may
/// bound its window.
pub const OFFER: &str = "permessage-deflate; client_no_context_takeover; client_max_window_bits";

/// What a server has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerAgreed {
    /// Each of its messages may refer to those before it.
    pub keeps_context: bool,
}

/// Reads a server's answer. `None`: it will not compress. Anything that was not offered is an error, and the connection
/// has to be given up (RFC 6455 section 4.1, RFC 7692 section 7.1).
pub fn agreed_by_server(headers: &HeaderMap, offered: bool) -> Result<Option<ServerAgreed>, String> {
    let named = extensions(headers).ok_or("Sec-WebSocket-Extensions cannot be read")?;
    let mut agreed = None;
    for extension in named {
        let name = extension.name;
        if !offered || !extension.is_deflate() {
            return Err(format!("the extension {name:.64?}, which was not offered"));
        }
        if agreed.is_some() {
            return Err(format!("the extension {NAME} twice"));
        }
        // An answer gives the window (section 7.1.2.2).
        let is_given =
            |(name, bits): &(&str, Option<&str>)| bits.is_some() || !name.eq_ignore_ascii_case(CLIENT_WINDOW);
        let answer = extension.offer().filter(|_| extension.parameters.iter().all(is_given));
        let answer = answer.ok_or_else(|| format!("{NAME} with parameters that were not offered, or are wrong"))?;
        agreed = Some(ServerAgreed { keeps_context: !answer.seen.contains(&SERVER_NO_CONTEXT) });
    }
    Ok(agreed)
}

/// An offer that is acceptable as far as it has been read.
#[derive(Default)]
struct Offer {
    seen: Vec<&'static str>,
    server_window: Option<u8>,
}

impl Offer {
    /// Adds one parameter. `None`: it is unknown, wrong or repeated, so the offer is declined (section 7.1).
    fn with(mut self, name: &str, value: Option<&str>) -> Option<Self> {
        let known = [SERVER_NO_CONTEXT, CLIENT_NO_CONTEXT, SERVER_WINDOW, CLIENT_WINDOW];
        let name = known.into_iter().find(|known| known.eq_ignore_ascii_case(name))?;
        if self.seen.contains(&name) {
            return None;
        }
        self.seen.push(name);
        match (name, value) {
            (SERVER_NO_CONTEXT | CLIENT_NO_CONTEXT | CLIENT_WINDOW, None) => {}
            // The client's own window may have any size.
            (CLIENT_WINDOW, Some(bits)) => drop(window_bits(bits)?),
            (SERVER_WINDOW, Some(bits)) => self.server_window = Some(window_bits(bits)?),
            _ => return None,
        }
        Some(self)
    }
}

/// Reads the bits of a window, section 7.1.2: 8 to 15, without leading zeros.
fn window_bits(text: &str) -> Option<u8> {
    (8..=MAX_WINDOW_BITS).find(|bits| bits.to_string() == text)
}

/// Whether a token may have this character, RFC 9110 section 5.6.2.
fn is_token(char: char) -> bool {
    char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char)
}

/// An extension that a header names, with its parameters.
struct Extension<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, Option<&'a str>)>,
}

impl Extension<'_> {
    fn is_deflate(&self) -> bool {
        self.name.eq_ignore_ascii_case(NAME)
    }

    /// `None`: it has to be declined.
    fn offer(&self) -> Option<Offer> {
        self.parameters.iter().try_fold(Offer::default(), |offer, (name, value)| offer.with(name, *value))
    }
}

/// All extensions that the headers name. `None`: they cannot be read.
fn extensions(headers: &HeaderMap) -> Option<Vec<Extension<'_>>> {
    let mut found = Vec::new();
    for header in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        let mut list = List { rest: header.to_str().ok()? };
        loop {
            found.extend(list.extension()?);
            if !list.eat(',') {
                break;
            }
        }
        if !list.rest.is_empty() {
            return None;
        }
    }
    Some(found)
}

/// Reads `Sec-WebSocket-Extensions`, RFC 6455 section 9.1. A method that returns `None` could not read on.
struct List<'a> {
    rest: &'a str,
}

impl<'a> List<'a> {
    /// Reads the next extension. `Some(None)`: the element is empty, RFC 9110 section 5.6.1.2.
    fn extension(&mut self) -> Option<Option<Extension<'a>>> {
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Some(None);
        }
        let mut extension = Extension { name: self.token()?, parameters: Vec::new() };
        while self.eat(';') {
            let name = self.token()?;
            let value = if self.eat('=') { Some(self.value()?) } else { None };
            extension.parameters.push((name, value));
        }
        Some(Some(extension))
    }

    fn token(&mut self) -> Option<&'a str> {
        self.skip_space();
        let end = self.rest.find(|char: char| !is_token(char)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        self.skip_space();
        (!token.is_empty()).then_some(token)
    }

    /// A token, bare or in quotes.
    fn value(&mut self) -> Option<&'a str> {
        self.skip_space();
        if !self.rest.starts_with('"') {
            return self.token();
        }
        let (value, rest) = self.rest.get(1..)?.split_once('"')?;
        self.rest = rest;
        self.skip_space();
        (!value.is_empty() && value.chars().all(is_token)).then_some(value)
    }

    fn eat(&mut self, char: char) -> bool {
        let rest = self.rest.strip_prefix(char);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agreed(headers: &[&str]) -> Option<Agreed> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_bytes(header.as_bytes()).unwrap());
        }
        negotiate(&map)
    }

    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn offers_are_taken() {
        let offers = [
            // Sections 7.1.1, 7.1.2 and 7.1.3, and what browsers send.
            ("permessage-deflate", None),
            ("permessage-deflate; server_no_context_takeover", None),
            ("permessage-deflate; client_no_context_takeover", None),
            ("permessage-deflate; server_max_window_bits=10", Some(10)),
            ("permessage-deflate; client_max_window_bits", None),
            ("permessage-deflate; client_max_window_bits=10", None),
            ("permessage-deflate; client_max_window_bits; server_max_window_bits=10", Some(10)),
            ("permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate", Some(10)),
            ("permessage-deflate; server_max_window_bits=\"12\"", Some(12)),
            ("permessage-deflate; server_max_window_bits=9", Some(9)),
            ("permessage-deflate; server_max_window_bits=15; client_max_window_bits=8", Some(15)),
            // The first acceptable offer counts.
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", None),
            (
                "permessage-deflate; use_y; server_max_window_bits=11, permessage-deflate; server_max_window_bits=12",
                Some(12),
            ),
            ("permessage-foo; x=1, bar, permessage-deflate; server_max_window_bits=14", Some(14)),
            // Space, case, empty elements.
            (" permessage-deflate ;\tserver_max_window_bits = 10 ", Some(10)),
            ("Permessage-Deflate;SERVER_MAX_WINDOW_BITS=10", Some(10)),
            (", permessage-deflate,,", None),
        ];
        for (offer, bits) in offers {
            let answer = bits.map_or(PLAIN.to_owned(), |bits| format!("{PLAIN}; server_max_window_bits={bits}"));
            let answer = HeaderValue::try_from(answer).unwrap();
            assert_eq!(agreed(&[offer]), Some(Agreed { window_bits: bits.unwrap_or(15), answer }), "{offer}");
        }
    }

    #[test]
    fn offers_are_declined() {
        let offers = [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate; use_y",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=\"a\"",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=11",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=a",
        ];
        for offer in offers {
            assert_eq!(agreed(&[offer]), None, "{offer}");
        }
        assert_eq!(agreed(&[]), None);
    }

    #[test]
    fn what_cannot_be_read_agrees_on_nothing() {
        let broken = [
            "permessage-deflate;",
            "permessage-deflate; =1",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"10",
            "permessage-deflate; server_max_window_bits=\"1 0\"",
            "permessage-deflate permessage-deflate",
            "permessage-deflate, (",
            "permessage-deflate; \u{e9}",
        ];
        for header in broken {
            assert_eq!(agreed(&[header]), None, "{header}");
            assert_eq!(agreed(&["permessage-deflate", header]), None, "{header}");
        }
    }

    #[test]
    fn headers_are_one_list() {
        assert_eq!(agreed(&["foo", "permessage-deflate; server_max_window_bits=12"]).unwrap().window_bits, 12);
        let first = agreed(&["permessage-deflate; server_max_window_bits=13", "permessage-deflate"]);
        assert_eq!(first.unwrap().window_bits, 13);
    }

    #[test]
    fn a_servers_answer_has_nothing_that_was_not_offered() {
        let answered = |headers: &[&str], offered| {
            let mut map = HeaderMap::new();
            for header in headers {
                map.append(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_bytes(header.as_bytes()).unwrap());
            }
            agreed_by_server(&map, offered)
        };
        let keeps = |keeps_context| Ok(Some(ServerAgreed { keeps_context }));
        for (answer, expected) in [
            ("permessage-deflate", keeps(true)),
            ("Permessage-Deflate; client_no_context_takeover, ", keeps(true)),
            ("permessage-deflate; server_no_context_takeover; server_max_window_bits=8", keeps(false)),
            ("permessage-deflate; client_max_window_bits=12", keeps(true)),
            ("", Ok(None)),
            (" , ", Ok(None)),
        ] {
            assert_eq!(answered(&[answer], true), expected, "{answer}");
        }
        assert_eq!(answered(&[], true), Ok(None));
        assert_eq!(answered(&[", "], false), Ok(None));
        for (answer, offered) in [
            ("permessage-deflate", false),
            ("x-webkit-deflate-frame", false),
            ("x-webkit-deflate-frame", true),
            ("permessage-deflate, permessage-deflate", true),
            ("permessage-deflate, bzip", true),
            ("permessage-deflate; client_max_window_bits", true),
            ("permessage-deflate; client_max_window_bits=16", true),
            ("permessage-deflate; server_max_window_bits=7", true),
            ("permessage-deflate; x", true),
            ("permessage-deflate;", true),
        ] {
            assert!(answered(&[answer], offered).is_err(), "{answer}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(header in "(permessage-deflate|[a-z;=,\" \t]|server_max_window_bits|[0-9]){0,12}") {
            if let Some(agreed) = agreed(&[&header]) {
                prop_assert!((9..=15).contains(&agreed.window_bits));
            }
        }
    }
}
