//! Drives the real binary.

#![allow(clippy::unwrap_used, dead_code, reason = "tests; each test file uses its part")]

pub(crate) mod fleet;
pub(crate) mod served;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

/// Far longer than anything takes on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The binary with these arguments, with none of the caller's variables in its environment.
pub(crate) fn command<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POINTSMAN_")) {
        command.env_remove(name);
    }
    // A `pointsman dev` of another test is not to be found.
    command.env("XDG_RUNTIME_DIR", "/nonexistent");
    command
}

/// Runs it to its end.
pub(crate) async fn run(args: &[&str]) -> Output {
    timeout(DEADLINE, command(args).output()).await.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running one, read line by line.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    notes: Option<Lines<BufReader<ChildStderr>>>,
    /// For messages of failure.
    seen: VecDeque<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let notes = child.stderr.take().map(|stderr| BufReader::new(stderr).lines());
        Running { child, lines, notes, seen: VecDeque::new() }
    }

    /// With what it writes to stderr for [`Running::note`].
    pub(crate) fn start_with_stderr(mut command: Command) -> Running {
        command.stderr(Stdio::piped());
        Running::start(command)
    }

    /// The next line on stderr.
    pub(crate) async fn note(&mut self) -> String {
        let line = timeout(DEADLINE, self.notes.as_mut().unwrap().next_line()).await;
        line.unwrap_or_else(|_| panic!("no further note after {:#?}", self.seen)).unwrap().unwrap()
    }

    /// Lets it write what it likes to stderr from now on: a pipe that nobody reads is full some time, and whoever writes waits then.
    pub(crate) fn ignore_notes(&mut self) {
        if let Some(mut notes) = self.notes.take() {
            tokio::spawn(async move { while let Ok(Some(_)) = notes.next_line().await {} });
        }
    }

    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The next line; panics at the end.
    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no further line after {:#?}", self.seen)).unwrap();
        let line = line.unwrap_or_else(|| panic!("no further line after {:#?}", self.seen));
        self.seen.push_back(line.clone());
        line
    }

    /// The next line, as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Reads on until an object satisfies the condition, and returns it.
    pub(crate) async fn json_where(&mut self, condition: impl Fn(&Value) -> bool) -> Value {
        loop {
            let value = self.json().await;
            if condition(&value) {
                return value;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for its end; what it still wrote is read, so that it does not hang.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let end = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                self.seen.push_back(line);
            }
            self.child.wait().await.unwrap()
        };
        match timeout(DEADLINE, end).await {
            Ok(status) => status,
            Err(_) => panic!("it does not end after {:#?}", self.seen),
        }
    }
}
