//! The log: to stderr, for whoever operates.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::args::{Global, LogFormat};

/// Starts the log. `drawn` says that the terminal is drawn on: then a log on the same terminal would destroy the picture.
/// `informs` says that the log is what the command has to say: then it informs without being asked to.
pub(crate) fn start(global: &Global, drawn: bool, informs: bool) {
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
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = match global.log_format {
        LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
