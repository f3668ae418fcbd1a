//! The log: to stderr, for whoever operates.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use pointsman::is_invisible;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::args::{Global, LogFormat};
use crate::output;

/// Whether the log is read by programs.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Says what a command waits for, to whoever looks at stderr: as a note, or, where programs read it, as a line of the log.
pub(crate) fn note(text: &str) {
    if IS_JSON.load(Ordering::Relaxed) {
        tracing::warn!("{text}");
    } else {
        output::note(&format!("note: {text}"));
    }
}

/// Starts the log. `drawn` says that the terminal is drawn on: then a log on the same terminal would destroy the picture.
/// `informs` says that the log is what the command has to say: then it informs without being asked to.
pub(crate) fn start(global: &Global, drawn: bool, informs: bool) {
    IS_JSON.store(global.log_format == LogFormat::Json, Ordering::Relaxed);
    if drawn && io::stderr().is_terminal() {
        return;
    }
    let level = match global.verbose.saturating_add(u8::from(informs)) {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // What this crate says below `info` may contain credentials; and what it warns of, each attempt that fails, is told in
    // our words once it matters.
    let client = if global.verbose == 0 { LevelFilter::ERROR } else { LevelFilter::INFO };
    let filter = Targets::new().with_default(level).with_target("zookeeper_client", client);
    let format = global.log_format;
    let layer = fmt::layer().with_writer(move || Lines { format, sink: io::stderr() });
    let layer = match format {
        LogFormat::Text => layer.with_ansi(is_coloured()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// Whether stderr is a terminal that shows colours, and its user wants them (<https://no-color.org>).
fn is_coloured() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stderr().is_terminal() && !is_unwanted && !is_dumb
}

/// Writes lines of the log, in which nothing hides: names in a registry are written by strangers. The subscriber itself escapes control
/// characters, and writes each line at once.
struct Lines<W> {
    format: LogFormat,
    sink: W,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) if text.chars().any(is_invisible) => self.sink.write_all(escaped(self.format, text).as_bytes())?,
            _ => self.sink.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn escaped(format: LogFormat, line: &str) -> Cow<'_, str> {
    let escaped = |c: char| if is_invisible(c) { c.escape_unicode().to_string() } else { c.to_string() };
    match format {
        LogFormat::Text => line.chars().map(escaped).collect::<String>().into(),
        LogFormat::Json => output::json_escaped(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hides_in_a_line() {
        for (format, wanted) in [(LogFormat::Text, "\u{1b}[1ma\\u{202e}b\n"), (LogFormat::Json, "\u{1b}[1ma\\u202eb\n")]
        {
            let mut lines = Lines { format, sink: Vec::new() };
            lines.write_all("\u{1b}[1ma\u{202e}b\n".as_bytes()).unwrap();
            assert_eq!(String::from_utf8(lines.sink).unwrap(), wanted);
        }
    }
}
