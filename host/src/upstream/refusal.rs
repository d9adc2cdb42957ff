//! A partner's answer that opens no WebSocket, and how long it asks to be left alone.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use hyper::header::{DATE, HeaderMap, RETRY_AFTER};

use crate::dial::switch::PlainAnswer;

/// The longest that is counted. A relay that waits for ten years waits for its operator.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a date leaves out at most.
const FRACTION: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct PartnerRefusal {
    pub status: u16,
    /// How long to wait at least (RFC 9110 section 10.2.3).
    pub retry_after: Option<Duration>,
    /// The beginning of the answer's body, escaped.
    body: String,
}

impl From<PlainAnswer> for PartnerRefusal {
    fn from(PlainAnswer { head, body }: PlainAnswer) -> Self {
        Self {
            status: head.status.as_u16(),
            retry_after: retry_after(&head.headers, SystemTime::now()),
            body: String::from_utf8_lossy(&body).trim().escape_debug().to_string(),
        }
    }
}

impl fmt::Display for PartnerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the partner answered the handshake with HTTP status {}", self.status)?;
        if let Some(after) = self.retry_after {
            write!(f, ", to be asked again in {} s", after.as_secs())?;
        }
        if self.body.is_empty() { Ok(()) } else { write!(f, ": \"{}\"", self.body) }
    }
}

/// Reads `Retry-After`: seconds, or a date. A date is held against the answer's own, since clocks differ. It has whole
/// seconds, so the partner may mean almost a second more.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(LONGEST, Duration::from_secs).min(LONGEST));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let after = until.duration_since(date.unwrap_or(now)).map_or(Duration::ZERO, |after| after + FRACTION);
    Some(after.min(LONGEST))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 08:00:00 GMT").unwrap();
        let read = |value: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            date.map(|date| headers.insert(DATE, date.parse().unwrap()));
            retry_after(&headers, now).map(|after| after.as_secs())
        };
        for (value, date, expected) in [
            ("5", None, Some(5)),
            ("0", None, Some(0)),
            (" 120 ", None, Some(120)),
            ("99999999999999999999", None, Some(LONGEST.as_secs())),
            ("Fri, 27 Nov 2026 08:01:00 GMT", None, Some(61)),
            ("Friday, 27-Nov-26 08:01:00 GMT", None, Some(61)),
            ("Fri Nov 27 08:01:00 2026", None, Some(61)),
            ("Fri, 27 Nov 2026 07:00:00 GMT", None, Some(0)),
            // The partner's clock is an hour late.
            ("Fri, 27 Nov 2026 07:00:30 GMT", Some("Fri, 27 Nov 2026 07:00:00 GMT"), Some(31)),
            ("-5", None, None),
            ("soon", None, None),
            ("", None, None),
        ] {
            assert_eq!(read(value, date), expected, "{value}");
        }
    }
}
