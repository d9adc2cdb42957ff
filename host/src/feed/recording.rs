//! A recorded session of a partner's feed, with one JSON object per line:
//!
//! ```json
//! {"t": 0.218416, "from": "upstream", "text": "…"}
//! {"t": 1.609446, "from": "upstream", "base64": "…"}
//! {"t": 0.177187, "from": "relay", "text": "…"}
//! ```
//!
//! `t` is in seconds since the connection opened. Messages from the relay are skipped, and never waited for.

use std::{
    io,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::Sink;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_tungstenite::{tungstenite, tungstenite::Message};

use crate::feed::Outgoing;

/// Largest recording that is played, in bytes. All of it stays in memory.
const MAX_BYTES: u64 = 256 << 20;
/// What some editors put before the first line of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One message from the partner.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Since the connection opened.
    pub at: Duration,
    /// Text or binary. Its bytes are shared: a clone costs nothing.
    pub message: Message,
}

/// Why a recording cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{}: has {size} bytes; the most that is played is {MAX_BYTES}; leave out its end, or split it",
        path.display()
    )]
    Size { path: PathBuf, size: u64 },
    #[error("{}:{line}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: String },
}

/// Reads a whole recording.
pub fn load(path: &Path) -> Result<Arc<[Recorded]>, RecordingError> {
    let unreadable = |error| RecordingError::Read { path: path.to_owned(), error };
    let file = config::open_file(path).map_err(|error| unreadable(error.into()))?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(RecordingError::Size { path: path.to_owned(), size });
    }
    // The file may grow while it is read.
    let mut rest = BufReader::new(file.take(MAX_BYTES));
    let (mut frames, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    while rest.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
        number += 1;
        let text = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| number == 1).unwrap_or(&line).trim_ascii_end();
        if !text.is_empty() {
            let frame =
                parse(text).map_err(|what| RecordingError::Line { path: path.to_owned(), line: number, what })?;
            frames.extend(frame);
        }
        line.clear();
    }
    Ok(frames.into())
}

/// Plays every frame at its time after `start`, divided by `speed`.
pub(super) async fn play<S>(
    frames: &[Recorded],
    speed: f64,
    start: Instant,
    out: &mut Outgoing<'_, S>,
) -> tungstenite::Result<()>
where
    S: Sink<Message, Error = tungstenite::Error> + Unpin,
{
    for Recorded { at, message } in frames {
        if speed > 0.0 {
            let due = Duration::try_from_secs_f64(at.as_secs_f64() / speed).ok();
            out.pause_until(due.and_then(|after| start.checked_add(after))).await?;
        }
        out.send(message.clone()).await?;
    }
    out.flush().await
}

#[derive(Deserialize)]
struct Line {
    t: f64,
    from: String,
    text: Option<String>,
    base64: Option<String>,
}

/// The frame of a line, if it came from the partner.
fn parse(line: &[u8]) -> Result<Option<Recorded>, String> {
    let Line { t, from, text, base64 } = serde_json::from_slice(line).map_err(|error| not(&error))?;
    match from.as_str() {
        "relay" => return Ok(None),
        "upstream" => {}
        other => return Err(format!("`from` is {other:?}: it must be \"upstream\" or \"relay\"")),
    }
    let at = Duration::try_from_secs_f64(t).map_err(|_| format!("`t` is {t}: it must be seconds since the start"))?;
    let message = match (text, base64) {
        (Some(text), None) => Message::text(text),
        (None, Some(base64)) => {
            Message::binary(BASE64_STANDARD.decode(base64).map_err(|error| format!("`base64`: {error}"))?)
        }
        _ => return Err("a frame has either `text` or `base64`".into()),
    };
    Ok(Some(Recorded { at, message }))
}

/// The library's message without its line number, which would count from this line.
fn not(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    format!("not a recorded frame: {what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use std::{env, fs, fs::File};

    use futures_util::sink;

    use super::*;
    use crate::feed::Sent;

    fn load_text(name: &str, text: &[u8]) -> Result<Arc<[Recorded]>, String> {
        let path = env::temp_dir().join(format!("edge-relay-{name}-{}.jsonl", std::process::id()));
        fs::write(&path, text).unwrap();
        let loaded = load(&path);
        fs::remove_file(&path).unwrap();
        let folder = format!("{}/", env::temp_dir().display());
        loaded.map_err(|error| error.to_string().replace(&folder, "").replace(&format!("-{}", std::process::id()), ""))
    }

    #[test]
    fn frames_from_upstream_are_read_in_order() {
        let text = br#"{"t":0.1,"from":"relay","text":"subscribe"}
{"t":0.25,"from":"upstream","text":"\u00e9"}

{"t":1.5,"from":"upstream","base64":"AP8="}
"#;
        let frames = load_text("order", text).unwrap();
        let expected = [
            Recorded { at: Duration::from_millis(250), message: Message::text("é") },
            Recorded { at: Duration::from_millis(1500), message: Message::binary(vec![0, 255]) },
        ];
        assert_eq!(*frames, expected);
    }

    #[test]
    fn errors_name_file_line_and_fault() {
        let cases: [(&[u8], &str); 7] = [
            (
                b"{\"t\":0,\"from\":\"upstream\",\"text\":\"\"}\n{",
                "2: not a recorded frame: EOF while parsing an object at column 1",
            ),
            (b"{\"t\":0,\"from\":\"upstream\"}", "1: a frame has either `text` or `base64`"),
            (
                b"{\"t\":0,\"from\":\"upstream\",\"text\":\"\",\"base64\":\"\"}",
                "1: a frame has either `text` or `base64`",
            ),
            (b"{\"t\":-1,\"from\":\"upstream\",\"text\":\"\"}", "1: `t` is -1: it must be seconds since the start"),
            (b"{\"t\":0,\"from\":\"me\",\"text\":\"\"}", "1: `from` is \"me\": it must be \"upstream\" or \"relay\""),
            (b"\n{\"t\":0,\"from\":\"upstream\",\"base64\":\"A\"}", "2: `base64`: Invalid input length: 1"),
            (b"{\"from\":\"upstream\"}", "1: not a recorded frame: missing field `t` at column 19"),
        ];
        for (nth, (text, expected)) in cases.into_iter().enumerate() {
            let name = format!("error{nth}");
            assert_eq!(load_text(&name, text), Err(format!("edge-relay-{name}.jsonl:{expected}")));
        }
        let missing = load(Path::new("/nowhere/feed.jsonl")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/feed.jsonl: No such file"), "{missing}");
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_skipped() {
        let line: &[u8] = b"{\"t\":0,\"from\":\"upstream\",\"text\":\"a\"}\r\n";
        let marked = [BYTE_ORDER_MARK, line, line].concat();
        assert_eq!(load_text("mark", &marked).unwrap().len(), 2);
        let twice = [line, BYTE_ORDER_MARK, line].concat();
        let error = load_text("mark-in-the-middle", &twice).unwrap_err();
        assert!(error.contains(":2: not a recorded frame"), "{error}");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let path = env::temp_dir().join(format!("edge-relay-large-{}.jsonl", std::process::id()));
        File::create(&path).unwrap().set_len(10 << 30).unwrap();
        let large = load(&path).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(large.contains("has 10737418240 bytes; the most that is played is 268435456"), "{large}");
        let endless = load(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(endless.starts_with("/dev/zero: it is not a file"), "{endless}");
    }

    fn frame(millis: u64) -> Recorded {
        Recorded { at: Duration::from_millis(millis), message: Message::text(millis.to_string()) }
    }

    /// When each frame went out, in milliseconds since the start.
    async fn times(frames: &[Recorded], speed: f64) -> Vec<u128> {
        let start = Instant::now();
        let mut times = Vec::new();
        let sink = Box::pin(sink::unfold(&mut times, |times: &mut Vec<_>, _: Message| async move {
            times.push(start.elapsed().as_millis());
            Ok(times)
        }));
        play(frames, speed, start, &mut Outgoing { sink, sent: &Sent::default() }).await.unwrap();
        times
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_divided_by_the_speed() {
        let frames = [frame(100), frame(100), frame(700)];
        assert_eq!(times(&frames, 1.0).await, [100, 100, 700]);
        assert_eq!(times(&frames, 10.0).await, [10, 10, 70]);
        assert_eq!(times(&frames, 0.5).await, [200, 200, 1400]);
        assert_eq!(times(&frames, 0.0).await, [0, 0, 0]);
    }
}
