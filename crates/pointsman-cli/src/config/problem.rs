//! What is wrong with a configuration file, and how it is told.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::args::{Global, LogFormat};
use crate::output::{self, shown};

/// Something wrong, at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    #[serde(skip)]
    pub(crate) severity: Severity,
    pub(crate) line: usize,
    pub(crate) column: usize,
    /// The key of `--set` that it is about, if it is not about the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<String>,
    /// `mqtt.route.0.match`; empty where it is not about a key.
    pub(crate) key: String,
    pub(crate) message: String,
    /// `None` where the line may hold a secret.
    #[serde(skip)]
    pub(super) excerpt: Option<Excerpt>,
}

/// Whether a file with it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It cannot.
    Error,
    /// It can, but hardly as it is meant.
    Warning,
}

/// The line in question, made fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub(super) text: String,
    /// The columns of the terminal before the place, and those that it takes.
    pub(super) indent: usize,
    pub(super) carets: usize,
}

/// Something wrong, before its place has been looked up.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) severity: Severity,
    pub(super) key: String,
    /// In bytes.
    pub(super) span: Range<usize>,
    pub(super) message: String,
    /// Whether the line is not to be shown.
    pub(super) is_hidden: bool,
}

impl Fault {
    pub(super) fn error(key: impl Into<String>, span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Error, key: key.into(), span, message, is_hidden: false }
    }

    pub(super) fn warning(key: impl Into<String>, span: Range<usize>, message: String) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, span, message) }
    }
}

impl Severity {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

impl Problem {
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// As compilers say it, with the line and the place in it.
    pub(crate) fn text(&self, file: &Path) -> String {
        let Self { severity, line, column, set, message, excerpt, .. } = self;
        let place = match set {
            Some(key) => format!("--set {}:{column}", shown(key)),
            None if file == Path::new(NO_FILE) => NO_FILE.to_owned(),
            None => format!("{}:{line}:{column}", shown(&file.display().to_string())),
        };
        let mut text = format!("{place}: {}: {}", severity.name(), shown(message));
        let gutter = line.to_string().len().max(4);
        // Writing to a string cannot fail.
        let _ = match excerpt {
            Some(Excerpt { text: source, .. }) if source.is_empty() => Ok(()),
            Some(Excerpt { text: source, indent, carets }) => {
                write!(text, "\n {line:>gutter$} | {source}\n {:gutter$} | {:indent$}{}", "", "", "^".repeat(*carets))
            }
            None => write!(text, "\n {line:>gutter$} | (not shown: the line may hold a secret)"),
        };
        text
    }
}

/// Stands for a file where everything is said by `--set`.
pub(crate) const NO_FILE: &str = "the command line";

/// Says all of them on stderr.
pub(crate) fn tell(problems: &[Problem], file: Option<&Path>, global: &Global) {
    let file = file.unwrap_or(Path::new(NO_FILE));
    for problem in problems {
        match global.log_format {
            LogFormat::Text => output::note(&problem.text(file)),
            LogFormat::Json => log(problem, &file.display().to_string()),
        }
    }
}

/// Says one in the log.
pub(crate) fn log(problem: &Problem, file: &str) {
    let Problem { severity, line, column, key, message, .. } = problem;
    match severity {
        Severity::Error => tracing::error!(file, line, column, key, "{}", shown(message)),
        Severity::Warning => tracing::warn!(file, line, column, key, "{}", shown(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_as_compilers_do() {
        let mut problem = Problem {
            severity: Severity::Error,
            line: 12,
            column: 9,
            set: None,
            key: "mqtt.listen".to_owned(),
            message: "is wrong".to_owned(),
            excerpt: Some(Excerpt { text: "listen = 3".to_owned(), indent: 9, carets: 1 }),
        };
        assert_eq!(
            problem.text(Path::new("p.toml")),
            "p.toml:12:9: error: is wrong\n   12 | listen = 3\n      |          ^"
        );
        problem.severity = Severity::Warning;
        problem.excerpt = None;
        assert!(problem.text(Path::new("p.toml")).starts_with("p.toml:12:9: warning: is wrong\n   12 | (not shown"));
        assert_eq!(
            serde_json::to_string(&problem).unwrap(),
            r#"{"line":12,"column":9,"key":"mqtt.listen","message":"is wrong"}"#
        );
    }
}
