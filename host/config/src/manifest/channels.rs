//! `[channels]` of a tenant's manifest, and `origins`.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    ChannelRule, History, Slow,
    document::{Table, Value, quote},
    names::MAX_PATH_BYTES,
};

/// Below the range every client would be a slow one. The logs of all tenants share the host's memory.
const LOG: RangeInclusive<u64> = 64 << 10..=1 << 30;

/// Publications that a client may miss and still get. No log has more than the top of the range.
const SIZE: RangeInclusive<u64> = 1..=1_000_000_000;
/// Below the range no client is back in time.
const AGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
/// Each key costs the bytes of its latest publication.
const MAX_KEYS: RangeInclusive<u64> = 1..=10_000_000;

/// A channel's rule; its key is the pattern.
pub(super) fn channel(pattern: String, value: Value<'_>) -> Option<ChannelRule> {
    let fix = if pattern.is_empty() || pattern.len() > MAX_PATH_BYTES {
        Some("is empty or too long; write 1 to 255 bytes")
    } else if pattern.chars().any(char::is_control) {
        Some("must have no control characters; rename the channel")
    } else if pattern.find('*').is_some_and(|star| star + 1 < pattern.len()) {
        Some("may have '*' only at its end; write a prefix and one '*'")
    } else {
        None
    };
    if let Some(fix) = fix {
        value.problem(format!("a channel's pattern {fix}"));
    }
    let mut table = value.table("a table, headed [channels.\"prices*\"]")?;
    let default = ChannelRule::default();
    let log_bytes = table.size("log", &LOG);
    let slow = table.take("slow").and_then(|value| slow(&value));
    let history = history(table.section("history"));
    let max_keys = table.count("max-keys", &MAX_KEYS).unwrap_or(default.max_keys);
    let snapshot = table.take("snapshot").and_then(|value| value.flag()).unwrap_or(default.snapshot);
    table.finish();
    // A history needs a log of at least its bytes.
    let least = if history.bytes == usize::MAX { 0 } else { history.bytes };
    let log_bytes = log_bytes.unwrap_or(default.log_bytes).max(least);
    Some(ChannelRule { pattern, log_bytes, slow, history, max_keys, snapshot })
}

fn slow(value: &Value<'_>) -> Option<Slow> {
    match value.str()? {
        "conflate" => Some(Slow::Conflate),
        "skip" => Some(Slow::Skip),
        "close" => Some(Slow::Close),
        other => {
            value.problem(format!("{} is none of \"conflate\", \"skip\" and \"close\"; write one", quote(other)));
            None
        }
    }
}

fn history(mut table: Table<'_>) -> History {
    let size = table.count("size", &SIZE).map(|size| size as u64);
    let (age, bytes) = (table.duration("age", &AGE), table.size("bytes", &LOG));
    table.finish();
    let all = History::default();
    let kept = size.is_some() || age.is_some() || bytes.is_some();
    let (size, age, bytes) = (size.unwrap_or(all.size), age.unwrap_or(all.age), bytes.unwrap_or(all.bytes));
    History { size, age, bytes, kept }
}

/// One of `origins`: an origin as browsers send it (RFC 6454 section 6.2), or `*`.
pub(super) fn origin(value: &Value<'_>) -> Option<String> {
    let origin = value.str()?;
    let parts = origin.split_once("://").filter(|(scheme, host)| {
        let default_port = match *scheme {
            "https" => ":443",
            "http" => ":80",
            _ => "/",
        };
        let is_plain = |text: &str| !text.is_empty() && !text.contains(['/', '?', '#', ' ']);
        is_plain(scheme) && is_plain(host) && !host.ends_with(default_port)
    });
    // Browsers send no capital letters, and no port that is the scheme's own.
    if origin != "*" && (parts.is_none() || origin.bytes().any(|byte| byte.is_ascii_uppercase())) {
        let write = "write what browsers send, such as \"https://app.example.com\", or \"*\"";
        value.problem(format!("{} is no origin; {write}", quote(origin)));
        return None;
    }
    Some(origin.to_owned())
}
