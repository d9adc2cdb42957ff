//! The host's log: lines on standard error.
//!
//! Partners, clients and guests have a say in many lines. A field's value that is more than one word is quoted, so that
//! it cannot pass for other fields, and no text ends a line or changes how it is shown.

use std::{
    fmt,
    fmt::{Debug, Write},
    io::IsTerminal,
    str::FromStr,
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    filter::{LevelFilter, Targets},
    fmt::{FormatFields, format::Writer},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::progress;

/// The field that is the line's text.
const MESSAGE: &str = "message";

/// The variable that chooses what is logged: a level, or `target=level` pairs with commas between them.
const VARIABLE: &str = "EDGE_RELAY_LOG";

/// What commands log that check code and then end: mistakes, and what is compiled, since that can take many seconds.
pub const OF_CHECKS: &str = "warn,edge_relay::component::load::engine=info";

/// Starts logging. `fallback` holds unless the environment says otherwise.
pub fn start(fallback: &str) -> Result<(), String> {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| fallback.to_owned());
    let targets = Targets::from_str(&wanted)
        .map_err(|error| format!("{VARIABLE}={wanted}: {error}; write for example {VARIABLE}=info"))?;
    // It warns each time that a guest does something wrong, without a limit.
    let targets = targets.with_target("wasmtime_wasi_http", LevelFilter::OFF);
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(progress::line)
        .with_ansi(terminal)
        .with_target(false)
        .fmt_fields(FieldsAsWords);
    tracing_subscriber::registry().with(lines).with(targets).try_init().map_err(|error| error.to_string())
}

/// Writes fields as `name=value`.
struct FieldsAsWords;

impl<'w> FormatFields<'w> for FieldsAsWords {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldWriter { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct FieldWriter<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl FieldWriter<'_> {
    fn write(&mut self, field: &Field, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        if field.name() == MESSAGE {
            return write_escaped(&mut self.writer, value);
        }
        write!(self.writer, "{}=", field.name())?;
        if is_word(value) {
            return self.writer.write_str(value);
        }
        self.writer.write_char('"')?;
        write_escaped(&mut self.writer, &value.replace('\\', "\\\\").replace('"', "\\\""))?;
        self.writer.write_char('"')
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.write(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Whether a value needs no quotes.
fn is_word(value: &str) -> bool {
    let may_stand_alone = |character: char| {
        !character.is_whitespace() && !matches!(character, '"' | '=' | '\\') && !changes_the_line(character)
    };
    !value.is_empty() && value.chars().all(may_stand_alone)
}

/// Writes text as part of one line.
pub fn write_escaped(out: &mut impl Write, text: &str) -> fmt::Result {
    for character in text.chars() {
        if changes_the_line(character) {
            write!(out, "{}", character.escape_default())?;
        } else {
            out.write_char(character)?;
        }
    }
    Ok(())
}

/// Whether a character ends a line, moves the cursor, or changes the order in which text is shown (the property
/// Bidi_Control of the Unicode Character Database).
fn changes_the_line(character: char) -> bool {
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    let is_bidi =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() && character != '\t' || is_separator || is_bidi
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::sync::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn no_character_changes_the_line() {
        let changing = "\u{7f}\u{85}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\
            \u{2066}\u{2067}\u{2068}\u{2069}\r\n\u{1b}";
        for character in changing.chars() {
            let mut out = String::new();
            write_escaped(&mut out, &character.to_string()).unwrap();
            assert!(out.is_ascii() && out.starts_with('\\'), "{out}");
        }
        let mut out = String::new();
        write_escaped(&mut out, "a\té").unwrap();
        assert_eq!(out, "a\té");
    }

    #[test]
    fn a_text_is_one_value_whatever_it_says() {
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(lines.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .fmt_fields(FieldsAsWords);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::error_span!("guest", tenant.name = %"a b");
            let _entered = span.enter();
            let said = "no\u{2028}retry_ms=1 \\\"";
            tracing::info!(error = %said, retry_ms = 2, empty = "", "text \"\u{202e}\n");
        });
        let expected = " INFO guest{tenant.name=\"a b\"}: text \"\\u{202e}\\n \
            error=\"no\\u{2028}retry_ms=1 \\\\\\\"\" retry_ms=2 empty=\"\"\n";
        assert_eq!(String::from_utf8(lines.0.lock().clone()).unwrap(), expected);
    }
}
