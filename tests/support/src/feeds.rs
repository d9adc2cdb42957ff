//! Recorded feeds. A test records the simulated exchange itself. Recordings of real exchanges are not part of the
//! project. They are used if the folder beside the repository has them.

use std::{
    fmt::Write,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use miniz_oxide::deflate::compress_to_vec_zlib;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    client::Client,
    place,
    process::{Process, command},
    tenant::Folder,
};

/// How many messages a test records.
const MESSAGES: usize = 2_000;
/// How many of them come in a second.
const RATE: &str = "2000";

/// How an exchange sends its JSON.
#[derive(Clone, Copy)]
pub enum Wire {
    Text,
    Binary,
    /// Each message compressed by itself.
    Compressed,
}

/// One session with an exchange.
pub struct Recording {
    pub file: PathBuf,
    /// All that the exchange sent, in order.
    pub messages: Vec<Message>,
    /// Whether a real exchange sent it.
    pub is_real: bool,
    _folder: Option<Folder>,
}

impl Recording {
    /// Returns the simulated exchange's recording, and that of the real exchange with this name, if there is one.
    pub async fn all(wire: Wire, exchange: &str) -> Vec<Self> {
        let mut all = vec![Self::simulated(wire).await];
        let file = place::root("../shared/feeds").join(format!("{exchange}.frames.jsonl"));
        if file.is_file() {
            all.push(Self { messages: messages(&file), file, is_real: true, _folder: None });
        }
        all
    }

    /// Records what `edge-relay feed` sends to a subscriber.
    async fn simulated(wire: Wire) -> Self {
        let (_feed, address) = feed(&["--rate", RATE]).await;
        let mut client = Client::connect(&format!("ws://{address}/")).await;
        let subscribe = r#"{"type":"subscribe"}"#;
        client.send(Message::text(subscribe)).await;
        let began = Instant::now();
        let mut lines = format!("{}\n", json!({ "t": 0.0, "from": "relay", "text": subscribe }));
        for _ in 0..MESSAGES {
            let (text, at) = (client.text().await, began.elapsed().as_secs_f64());
            let line = match wire {
                Wire::Text => json!({ "t": at, "from": "upstream", "text": text }),
                Wire::Binary => json!({ "t": at, "from": "upstream", "base64": BASE64_STANDARD.encode(text) }),
                Wire::Compressed => {
                    let compressed = compress_to_vec_zlib(text.as_bytes(), 6);
                    json!({ "t": at, "from": "upstream", "base64": BASE64_STANDARD.encode(compressed) })
                }
            };
            writeln!(lines, "{line}").unwrap();
        }
        let folder = Folder::empty();
        folder.write("simulated.jsonl", lines);
        let file = folder.path("simulated.jsonl");
        Self { messages: messages(&file), file, is_real: false, _folder: Some(folder) }
    }

    /// Plays the recording, with its pauses divided by `speed`. Returns the player, and the address where it listens.
    pub async fn play(&self, speed: &str) -> (Process, SocketAddr) {
        play(&self.file, speed).await
    }
}

/// Runs `edge-relay feed` with a recording. Returns it, and the address where it listens.
pub async fn play(file: &Path, speed: &str) -> (Process, SocketAddr) {
    feed(&["--file", file.to_str().unwrap(), "--speed", speed]).await
}

async fn feed(arguments: &[&str]) -> (Process, SocketAddr) {
    let mut feed = Process::spawn(command(&[&["feed", "--listen", "127.0.0.1:0"], arguments].concat()));
    let addresses = feed.listening().await;
    assert_eq!((addresses.len(), addresses[0].0.as_str()), (1, "feed"));
    (feed, addresses[0].1)
}

/// Returns all that the exchange of a recording sent, in order.
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
