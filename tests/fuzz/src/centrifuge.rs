//! Commands of clients of the Centrifuge protocol.

use serde::de::IgnoredAny;
use wire::centrifuge::{Request, decode};

/// Any text. What is taken is as many commands as it has lines with something in them, and their data is JSON.
pub fn centrifuge(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(commands) = decode(text) else { return };
    assert!(!commands.is_empty());
    for command in commands {
        let data = match command.request {
            Request::Connect { data, .. } | Request::Subscribe { data, .. } => data,
            Request::Publish { data, .. } | Request::Send { data } | Request::Rpc { data, .. } => Some(data),
            _ => None,
        };
        let is_json = |data: String| serde_json::from_str::<IgnoredAny>(&data).is_ok();
        assert!(data.is_none_or(is_json));
    }
}
