//! Commands of Centrifuge clients.

use serde::de::IgnoredAny;
use wire::centrifuge::{Request, decode};

/// Decodes any text. If it is accepted, it has at least one command, and the data of each command is JSON.
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
