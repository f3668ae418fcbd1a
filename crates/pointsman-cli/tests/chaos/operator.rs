//! What an operator sets for instances, by the command line.

use std::process::Stdio;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::history::History;
use crate::recorder::Recorder;
use crate::support::command;
use crate::truth::{Override, SETTLE};

/// Time that a command may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Number of times that a command which takes something back is tried.
const TRIES: usize = 5;

/// Runs commands for the instances of one service, and records what is certain of their effect.
pub(crate) struct Operator {
    pub(crate) recorder: Recorder,
    pub(crate) registry: String,
    pub(crate) service: &'static str,
}

impl Operator {
    /// Runs `pointsman WORDS` for a code, up to so many times until it succeeds; then `then` holds.
    pub(crate) fn command(
        self,
        code: &str,
        words: &[&str],
        then: Override,
        tries: usize,
    ) -> impl Future<Output = ()> + use<> {
        let mut arguments = vec![words[0].to_owned(), self.service.to_owned(), code.to_owned()];
        arguments.extend(words[1..].iter().map(|word| (*word).to_owned()));
        arguments.extend(["--registry".to_owned(), self.registry]);
        let shown = words.join(" ");
        let (recorder, code) = (self.recorder, code.to_owned());
        recorder.set_override(&code, Override::Changing, &format!("`pointsman {shown}` starts"));
        async move {
            let mut command = command(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            for _ in 0..tries {
                let status = timeout(PATIENCE, command.status()).await;
                if status.is_ok_and(|status| status.is_ok_and(|status| status.success())) {
                    return recorder.set_override(&code, then, &format!("`pointsman {shown}` has succeeded"));
                }
                recorder.note(format!("{code}: `pointsman {shown}` has failed"));
            }
        }
    }

    /// Takes back what is set for a code, by these words. `false`: not yet, or not for certain; try again later.
    pub(crate) fn take_back(self, code: &str, words: &[&str], tasks: &mut JoinSet<()>) -> bool {
        let last = self.recorder.truth().overrides.get(code).and_then(History::last);
        let now = self.recorder.now();
        // A command that failed may or may not have been carried out: nothing is certain until one has succeeded.
        let serves = self.recorder.truth().known_at(now).is_some_and(|known| known + SETTLE + SETTLE / 10 >= now);
        if serves {
            tasks.spawn(self.command(code, words, Override::Open, TRIES));
        }
        serves && last != Some(Override::Changing)
    }
}
