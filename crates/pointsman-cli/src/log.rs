//! The log: to stderr, for whoever operates.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use pointsman::{is_invisible, shown};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt};

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
    let sink = move || Lines { format, sink: io::stderr() };
    let layer = match format {
        LogFormat::Text => text(sink, is_coloured()).boxed(),
        LogFormat::Json => json(sink).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// Lines for people. What clients and registries say of themselves stands in fields, and could end a line and begin another: so each
/// character of a field or a message that would do that is escaped, wherever it comes from.
fn text<S, W>(sink: W, is_coloured: bool) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let fields = debug_fn(|writer, field, value| {
        let name = field.name().trim_start_matches("r#");
        match (name, writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
            (name, false) => write!(writer, "{name}=")?,
        }
        write!(Shown(writer), "{value:?}")
    });
    fmt::layer().with_ansi(is_coloured).fmt_fields(fields.delimited(" ")).with_writer(sink)
}

/// Lines for programs, in which everything is escaped as JSON has it.
fn json<S, W>(sink: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    fmt::layer().json().flatten_event(true).with_writer(sink)
}

/// Writes text as it can be shown.
struct Shown<W>(W);

impl<W: std::fmt::Write> std::fmt::Write for Shown<W> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write_str(&shown(text))
    }
}

/// Whether stderr is a terminal that shows colours, and its user wants them (<https://no-color.org>).
fn is_coloured() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stderr().is_terminal() && !is_unwanted && !is_dumb
}

/// Writes lines of the log, in which nothing hides: names in a registry are written by strangers. Control characters have been escaped
/// before; the subscriber writes each line at once.
struct Lines<W> {
    format: LogFormat,
    sink: W,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) if text.chars().any(output::is_hidden) => {
                self.sink.write_all(escaped(self.format, text).as_bytes())?;
            }
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
    use std::sync::{Arc, Mutex};

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

    /// What is logged by `events` in this form.
    fn logged(format: LogFormat, is_coloured: bool, events: impl FnOnce()) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let written = Arc::clone(&written);
            move || Lines { format, sink: Collected(Arc::clone(&written)) }
        };
        let layer = match format {
            LogFormat::Text => text(sink, is_coloured).boxed(),
            LogFormat::Json => json(sink).boxed(),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        String::from_utf8(std::mem::take(&mut written.lock().unwrap())).unwrap()
    }

    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const FORGED: &str = "x\n2026-12-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{7}";

    fn forged_events() {
        tracing::info!(client = %FORGED, topic = FORGED, quoted = ?FORGED, "MQTT client connected");
        tracing::info!("{FORGED}");
        let span = tracing::info_span!("connection", client = %FORGED);
        span.in_scope(|| tracing::info!("in a span"));
    }

    #[test]
    fn no_field_forges_a_line() {
        let text = logged(LogFormat::Text, false, forged_events);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.ends_with('\n') && !text.chars().any(|c| c != '\n' && (c.is_control() || is_invisible(c))),
            "{text:?}"
        );
        assert!(
            text.contains(r"client=x\n2026-12-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{7}"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.contains("INFO")), "{text}");
        // The colours are the log's own.
        let coloured = logged(LogFormat::Text, true, forged_events);
        assert_eq!(coloured.lines().count(), 3, "{coloured}");
        assert!(!coloured.contains("\u{1b}[2J") && coloured.contains("\u{1b}[3mclient"), "{coloured:?}");
        let json = logged(LogFormat::Json, false, forged_events);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), lines[0]["client"].as_str()), (3, Some(FORGED)));
        assert!(!json.chars().any(|c| c != '\n' && (c.is_control() || is_invisible(c))), "{json:?}");
    }
}
