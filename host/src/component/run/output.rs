//! What guests write: lines in the tenant's log.

use std::{
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::enabled;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{
    component::{bindings::wasi::logging::logging::Level, run::host::Guest},
    sync::Mutex,
};

/// Bytes of one line; a message is cut there, what is written to a stream goes on in the next.
const MAX_LINE: usize = 4 << 10;
/// Bytes that are kept of what a stream was told last: an exception with its stack.
const MAX_WORDS: usize = 4 << 10;
/// Between lines that are one line of the log: a line end as any text of a guest has it there.
const LINE_END: &str = "\\n";

/// What a guest says by way of `wasi:logging`.
pub fn log(guest: &Guest, level: Level, context: &str, message: &str) {
    let is_written = match level {
        Level::Trace => enabled!(tracing::Level::TRACE),
        Level::Debug => enabled!(tracing::Level::DEBUG),
        Level::Info => enabled!(tracing::Level::INFO),
        Level::Warn => enabled!(tracing::Level::WARN),
        Level::Error | Level::Critical => enabled!(tracing::Level::ERROR),
    };
    if !is_written || !guest.tenant.log_lines.take() {
        return;
    }
    let (tenant, name) = (&guest.tenant.name, &guest.name);
    let (context, message) = (line(context), line(message));
    match level {
        Level::Trace => {
            tracing::trace!(tenant.name = %tenant, guest.name = %name, guest.context = context, "{message}")
        }
        Level::Debug => {
            tracing::debug!(tenant.name = %tenant, guest.name = %name, guest.context = context, "{message}")
        }
        Level::Info => tracing::info!(tenant.name = %tenant, guest.name = %name, guest.context = context, "{message}"),
        Level::Warn => tracing::warn!(tenant.name = %tenant, guest.name = %name, guest.context = context, "{message}"),
        Level::Error | Level::Critical => {
            tracing::error!(tenant.name = %tenant, guest.name = %name, guest.context = context, "{message}");
        }
    }
}

/// Text of a guest as part of one line: cut where it is too long, and without the line ends and control sequences by
/// which it could pass for other lines.
pub fn line(text: &str) -> String {
    let mut out = String::new();
    for character in text.get(..text.floor_char_boundary(MAX_LINE)).unwrap_or_default().chars() {
        if character.is_control() && character != '\t' {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A guest's standard output or error.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Lines>>);

struct Lines {
    guest: Guest,
    stream: &'static str,
    /// A line whose end is yet to come.
    begun: Vec<u8>,
    /// The latest lines of the call under way, with what stands for their ends between them.
    words: String,
}

impl Output {
    pub fn new(guest: &Guest, stream: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Lines { guest: guest.clone(), stream, begun: Vec::new(), words: String::new() })))
    }

    /// A call begins: what was written before it does not explain its end.
    pub fn forget(&self) {
        self.lines().words.clear();
    }

    /// What was written last in this call, as part of one line; of much the end.
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
        let line = line(&String::from_utf8_lossy(self.begun.trim_ascii_end()));
        if !line.is_empty() && self.guest.tenant.log_lines.take() {
            let (tenant, name) = (&self.guest.tenant.name, &self.guest.name);
            tracing::info!(tenant.name = %tenant, guest.name = %name, guest.stream = self.stream, "{line}");
            self.keep(&line);
        }
        self.begun.clear();
    }

    /// Remembers a line, and of the lines before it what there is room for.
    fn keep(&mut self, line: &str) {
        if !self.words.is_empty() {
            self.words.push_str(LINE_END);
        }
        self.words.push_str(line);
        let over = self.words.len().saturating_sub(MAX_WORDS);
        self.words.drain(..self.words.ceil_char_boundary(over));
    }
}

/// A guest that dies in the middle of a line has said something all the same.
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
    /// A guest that writes more than [`check_write`](OutputStream::check_write) allows breaks the interface's rules: what
    /// it hands over at once keeps this thread for as long as it is worked on.
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
