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
/// Bytes that are kept of what was last written to a stream: enough for an exception with its stack.
const MAX_WORDS: usize = 4 << 10;

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
    /// The latest lines of the call under way.
    words: String,
}

impl Output {
    pub fn new(guest: &Guest, stream: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Lines { guest: guest.clone(), stream, begun: Vec::new(), words: String::new() })))
    }

    /// Forgets what was written before the call that begins: it does not explain how the call ends.
    pub fn forget(&self) {
        self.lines().words.clear();
    }

    /// Takes what was written last in this call: whole lines, the last without its end.
    pub fn words(&self) -> String {
        let mut lines = self.lines();
        lines.end();
        std::mem::take(&mut lines.words)
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
        let write = || error_span!("output", guest.stream = self.stream).in_scope(|| tracing::info!("{line}"));
        if !line.is_empty() && self.guest.log_text(line.len(), write) {
            keep(&mut self.words, line);
        }
        self.begun.clear();
    }
}

/// Remembers a line, and as much as there is room for of the lines before it.
fn keep(words: &mut String, line: &str) {
    if !words.is_empty() {
        words.push('\n');
    }
    words.push_str(line);
    let over = words.len().saturating_sub(MAX_WORDS);
    words.drain(..words.ceil_char_boundary(over));
}

/// Writes the line that a guest was in the middle of when it ended.
impl Drop for Lines {
    fn drop(&mut self) {
        self.end();
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
    use crate::component::run::output::line;

    #[test]
    fn a_guest_cannot_write_lines_that_are_not_its_own() {
        assert_eq!(line("a\n2026 ERROR b\x1b[31m\tc\r\u{85}é"), "a\\n2026 ERROR b\\u{1b}[31m\tc\\r\\u{85}é");
        assert_eq!(line(&"é".repeat(4096)).len(), 4096);
    }
}
