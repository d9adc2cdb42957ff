//! The recorded feeds, which are no part of the project: tests that need them are skipped where they are not.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

/// The file of an exchange's feed.
pub fn file(exchange: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/feeds");
    let file = folder.join(format!("{exchange}.frames.jsonl"));
    if file.is_file() {
        return Some(file);
    }
    // Not by way of the test harness, which keeps what a test that passes prints.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIPPED: {} is not there", file.display()).unwrap();
    None
}

/// All that the exchange sent, in order.
pub fn messages(file: &Path) -> Vec<Message> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["from"] == "upstream")
        .map(|line| match line["text"].as_str() {
            Some(text) => Message::text(text),
            None => Message::binary(BASE64_STANDARD.decode(line["base64"].as_str().unwrap()).unwrap()),
        })
        .collect()
}
