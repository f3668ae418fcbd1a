//! How a command fails: what it says, and its exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use crate::args::{Global, LogFormat};
use crate::output;

/// Why a command ends before its time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    /// `None` where there is nothing to tell: nobody reads any more.
    message: Option<String>,
}

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: Some(message.into()) }
    }

    /// Another exit code.
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// An end in haste, which needs no words: the user has signalled twice.
    pub(crate) fn hurried() -> Self {
        Self { code: 130, message: None }
    }

    /// Wrong usage that only shows once the arguments are put together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(message).with_code(2)
    }

    /// Returns the message.
    pub(crate) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    /// Says it on stderr.
    pub(crate) fn tell(self, global: &Global) -> ExitCode {
        match (self.message, global.log_format) {
            (None, _) => {}
            (Some(message), LogFormat::Text) => {
                let lines: Vec<_> = message.lines().map(output::shown).collect();
                output::note(&format!("error: {}", lines.join("\n")));
            }
            (Some(message), LogFormat::Json) => tracing::error!("{message}"),
        }
        ExitCode::from(self.code)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { code: 0, message: None },
            _ => Self::new(format!("write to stdout: {error}")),
        }
    }
}

impl From<pointsman::Error> for Failure {
    fn from(error: pointsman::Error) -> Self {
        use pointsman::Error as E;
        let is_usage = matches!(error, E::Url { .. } | E::Invalid(_) | E::TooLarge { .. });
        let failure = Self::new(chain(&error));
        if is_usage { failure.with_code(2) } else { failure }
    }
}

impl From<pointsman::mqtt::Error> for Failure {
    fn from(error: pointsman::mqtt::Error) -> Self {
        Self::new(chain(&error))
    }
}

impl From<pointsman::proxy::Error> for Failure {
    fn from(error: pointsman::proxy::Error) -> Self {
        Self::new(chain(&error))
    }
}

impl From<pointsman::PickError> for Failure {
    fn from(error: pointsman::PickError) -> Self {
        Self::new(chain(&error))
    }
}

/// The error and its sources, each said once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        source = error.source();
    }
    match advice(error) {
        Some(advice) if !text.contains(advice) => format!("{text}; {advice}"),
        _ => text,
    }
}

/// Returns advice for an address at which the process cannot listen.
fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut sources = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    match sources.find_map(|error| error.downcast_ref::<io::Error>())?.kind() {
        io::ErrorKind::AddrInUse => Some("another process listens there: choose another port, or end it"),
        io::ErrorKind::AddrNotAvailable => Some("this machine does not have that address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_can_never_work_is_wrong_usage() {
        let code = |error: pointsman::Error| Failure::from(error).code;
        let connect = async |url: &str| pointsman::Registry::connect(url).await.unwrap_err();
        assert_eq!(code(connect("zookeper://h:1").await), 2);
        assert_eq!(code(connect("zookeeper://127.0.0.1:1/p?connect_timeout=1ms").await), 1);
        let registry = pointsman::Registry::connect("memory://").await.unwrap();
        assert_eq!(code(registry.discover("a/b").await.unwrap_err()), 2);
        assert_eq!(code(registry.discover("s").await.unwrap().master().unwrap_err()), 1);
    }

    #[derive(Debug)]
    struct Step(&'static str, Option<Box<Step>>);

    impl std::fmt::Display for Step {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|step| step as _)
        }
    }

    #[test]
    fn each_source_is_said_once() {
        let error = Step("open /x: denied", Some(Box::new(Step("denied", Some(Box::new(Step("no such user", None)))))));
        assert_eq!(chain(&error), "open /x: denied: no such user");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure { code: 0, message: None });
    }
}
