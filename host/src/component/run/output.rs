//! Lines of the log that guests write, or that are about them.

use std::{
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::{Span, enabled, error_span};
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{
    component::{bindings::wasi::logging::logging::Level, run::host::Guest},
    sync::Mutex,
    telemetry,
};

/// Bytes of one line. A message is cut there; what is written to a stream goes on in the next line.
const MAX_LINE: usize = 4 << 10;
/// Bytes of the lines that wait for the end of a call: enough for an exception with its stack.
const MAX_HELD: usize = 4 << 10;

impl Guest {
    /// Has `write` write a line about the guest, if its tenant may write another now. Returns whether it may.
    pub fn log(&self, write: impl FnOnce()) -> bool {
        self.log_text(0, write)
    }

    /// Does the same for a line with a text of this many bytes, which the guest has chosen.
    pub fn log_text(&self, bytes: usize, write: impl FnOnce()) -> bool {
        let may = self.tenant.log_lines.take_long(bytes);
        if may {
            self.span().in_scope(write);
        }
        may
    }

    /// Names tenant, role and guest in a line that is written within it. It is made for each line, because a task would
    /// enter and leave it at each call.
    pub fn span(&self) -> Span {
        // At the level of errors, so that no choice of level takes the names away from a line.
        let role = self.role.name();
        error_span!("guest", tenant.name = %self.tenant.name, guest.role = role, guest.name = %self.name)
    }
}

/// Writes what a guest says through `wasi:logging`.
pub fn log(guest: &Guest, level: Level, context: &str, message: &str) {
    let is_written = match level {
        Level::Trace => enabled!(tracing::Level::TRACE),
        Level::Debug => enabled!(tracing::Level::DEBUG),
        Level::Info => enabled!(tracing::Level::INFO),
        Level::Warn => enabled!(tracing::Level::WARN),
        Level::Error | Level::Critical => enabled!(tracing::Level::ERROR),
    };
    if !is_written {
        return;
    }
    let (context, message) = (cut(context), cut(message));
    guest.log_text(context.len() + message.len(), || {
        error_span!("output", guest.stream = "logging", guest.context = context).in_scope(|| match level {
            Level::Trace => tracing::trace!("{message}"),
            Level::Debug => tracing::debug!("{message}"),
            Level::Info => tracing::info!("{message}"),
            Level::Warn => tracing::warn!("{message}"),
            Level::Error | Level::Critical => tracing::error!("{message}"),
        });
    });
}

/// Makes a guest's text part of one line, cut where it is too long.
pub fn line(text: &str) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = telemetry::write_escaped(&mut out, cut(text));
    out
}

/// Cuts a guest's text to what one line may have.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_LINE)).unwrap_or_default()
}

/// A guest's standard output or error.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Lines>>);

struct Lines {
    guest: Guest,
    stream: &'static str,
    /// A line whose end is yet to come.
    begun: Vec<u8>,
    /// `None`: lines are written at once.
    held: Option<HeldLines>,
}

/// The latest lines of a call under way, with newlines between them. If the call fails, they explain why.
#[derive(Default)]
struct HeldLines(String);

impl HeldLines {
    /// Adds a line. Returns the lines before it that there is no more room for.
    fn add(&mut self, line: &str) -> String {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(line);
        let over = self.0.len().saturating_sub(MAX_HELD);
        if over == 0 {
            return String::new();
        }
        // The end of the first line after which the rest is short enough.
        let end = self.0.bytes().enumerate().skip(over - 1).find(|(_, byte)| *byte == b'\n');
        let length = end.map_or(self.0.len(), |(at, _)| at + 1);
        self.0.drain(..length).collect()
    }
}

impl Output {
    pub fn stdout(guest: &Guest) -> Self {
        Self::new(guest, "stdout", None)
    }

    /// What is written to it waits until its call has ended, or [`Output::release`] is called.
    pub fn stderr(guest: &Guest) -> Self {
        Self::new(guest, "stderr", Some(HeldLines::default()))
    }

    fn new(guest: &Guest, stream: &'static str, held: Option<HeldLines>) -> Self {
        Self(Arc::new(Mutex::new(Lines { guest: guest.clone(), stream, begun: Vec::new(), held })))
    }

    /// Writes the lines that wait: their call has returned, or takes long.
    pub fn release(&self) {
        self.lines().release();
    }

    /// Takes the lines that wait, for the line about a call that failed. The last comes without its end.
    pub fn words(&self) -> String {
        let mut lines = self.lines();
        lines.end();
        lines.held.take().map_or_else(String::new, |held| held.0)
    }

    fn take(&self, bytes: &[u8]) {
        self.lines().take(bytes);
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock()
    }
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(MAX_LINE) {
                if self.begun.len() + piece.len() > MAX_LINE {
                    self.end();
                }
                self.begun.extend_from_slice(piece);
            }
            if part.ends_with(b"\n") {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        let text = String::from_utf8_lossy(self.begun.trim_ascii_end());
        let line = cut(&text);
        match &mut self.held {
            Some(held) if !line.is_empty() => {
                let before = held.add(line);
                self.write(&before);
            }
            _ => self.write(line),
        }
        self.begun.clear();
    }

    fn release(&mut self) {
        if let Some(held) = &mut self.held {
            let lines = std::mem::take(&mut held.0);
            self.write(&lines);
        }
    }

    fn write(&self, lines: &str) {
        for line in lines.split('\n').filter(|line| !line.is_empty()) {
            let write = || error_span!("output", guest.stream = self.stream).in_scope(|| tracing::info!("{line}"));
            self.guest.log_text(line.len(), write);
        }
    }
}

/// Writes the lines of a guest that ended without a word about it, and the one that it was in the middle of.
impl Drop for Lines {
    fn drop(&mut self) {
        self.end();
        self.release();
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    /// Traps a guest that writes more than [`check_write`](OutputStream::check_write) allows: it breaks the interface's
    /// rules, and would keep this thread busy.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > MAX_LINE {
            return Err(StreamError::trap(&format!("writes more than {MAX_LINE} bytes to a standard stream at once")));
        }
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_lines_are_held_and_those_before_come_out_in_order() {
        let mut held = HeldLines::default();
        let lines: Vec<_> = (0..2_000).map(|nth| format!("line {nth} é")).collect();
        let mut out = String::new();
        for line in &lines {
            out.push_str(&held.add(line));
            assert!(held.0.len() <= MAX_HELD && held.0.ends_with(line.as_str()));
        }
        assert!(held.0.len() > MAX_HELD - 20, "{}", held.0.len());
        assert_eq!(format!("{out}{}", held.0), lines.join("\n"));
        let longest = "x".repeat(MAX_LINE);
        assert!(held.add(&longest).ends_with("line 1999 é\n"));
        assert_eq!(held.0, longest);
    }

    #[test]
    fn a_guest_cannot_write_lines_that_are_not_its_own() {
        assert_eq!(line("a\n2026 ERROR b\x1b[31m\tc\r\u{85}é"), "a\\n2026 ERROR b\\u{1b}[31m\tc\\r\\u{85}é");
        assert_eq!(line(&"é".repeat(4096)).len(), 4096);
    }
}
