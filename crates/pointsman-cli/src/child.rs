//! The command that `register` runs.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::stdio;
use rustix::termios::tcgetpgrp;
use tokio::process::Command;

use crate::failure::Failure;
use crate::memory;
use crate::signals::Signals;

/// The variable that holds the code of the registration beside which a command runs. A registration that the command makes itself does not
/// take the same value of `POINTSMAN_CODE` for its own code.
pub(crate) const PARENT_CODE: &str = "POINTSMAN_PARENT_CODE";

/// A running command. Killed when dropped before it has ended.
#[derive(Debug)]
pub(crate) struct Child {
    inner: tokio::process::Child,
}

impl Child {
    /// Starts a command, with the service and code of its registration in its environment. It inherits stdin, stdout, stderr, and all variables
    /// except those in `hidden`.
    ///
    /// A command that cannot be started is a failure as a shell has it: exit code 127 when there is none, else 126.
    pub(crate) fn start(
        command: &[OsString],
        hidden: impl IntoIterator<Item = OsString>,
        service: &str,
        code: &str,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::usage("there is no command after --"));
        };
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        for variable in hidden {
            command.env_remove(variable);
        }
        command.env("POINTSMAN_SERVICE", service).env("POINTSMAN_CODE", code).env(PARENT_CODE, code);
        let spawned = memory::as_before(|| command.spawn());
        spawned.map(|inner| Self { inner }).map_err(|error| {
            let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
            Failure::new(format!("start {}: {error}", program.display())).with_code(code)
        })
    }

    /// Waits for its end. Cancellation loses nothing.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.inner.wait().await.map_err(|error| Failure::new(format!("wait for the command: {error}")))
    }

    /// Hands a signal on (unless the terminal has done so), and waits for the end; after `patience`, or when `impatient` is done, it is killed.
    /// Until then it is handed `others` as well.
    pub(crate) async fn stop(
        &mut self,
        signal: Signal,
        patience: Duration,
        impatient: impl Future,
        others: &mut Signals,
    ) -> Result<ExitStatus, Failure> {
        self.hand_on(signal);
        let (mut impatient, mut limit) = (pin!(impatient), pin!(tokio::time::sleep(patience)));
        loop {
            tokio::select! {
                status = self.ended() => return status,
                signal = others.next() => self.hand_on(signal),
                () = &mut limit => {
                    tracing::warn!("the command has not ended within {patience:?} of the signal; it is killed");
                    break;
                }
                _ = &mut impatient => break,
            }
        }
        self.send(Signal::KILL);
        self.ended().await
    }

    /// Hands a signal on, unless the terminal has done so.
    pub(crate) fn hand_on(&self, signal: Signal) {
        if !told_by_the_terminal(signal) {
            self.send(signal);
        }
    }

    /// Hands on each signal that arrives.
    pub(crate) async fn hand_all_on(&self, signals: &mut Signals) -> Infallible {
        loop {
            self.hand_on(signals.next().await);
        }
    }

    fn send(&self, signal: Signal) {
        // No id: its end has been waited for already.
        let id = self.inner.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(Err(error)) = id.map(|id| kill_process(id, signal)) {
            tracing::warn!(%error, ?signal, "signal the command");
        }
    }
}

/// Ctrl-C, Ctrl-\ and another size of the window reach every process in the foreground of the terminal, the command as well; many programs take
/// a second SIGINT for impatience.
fn told_by_the_terminal(signal: Signal) -> bool {
    let in_foreground = |group: rustix::io::Result<Pid>| group.is_ok_and(|group| group == getpgrp());
    [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal)
        && (in_foreground(tcgetpgrp(stdio::stdin())) || in_foreground(tcgetpgrp(stdio::stderr())))
}

/// The exit code that passes on how a command ended: its own, or 128 and the signal's number, as shells have it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    async fn code_of(script: &str) -> u8 {
        let mut child = Child::start(&command(&["sh", "-c", script]), [], "s", "c").unwrap();
        exit_code(child.ended().await.unwrap())
    }

    #[tokio::test]
    async fn the_end_is_passed_on() {
        assert_eq!(code_of("exit 0").await, 0);
        assert_eq!(code_of("exit 3").await, 3);
        assert_eq!(code_of("kill -9 $$").await, 137);
        assert_eq!(code_of("test \"$POINTSMAN_SERVICE/$POINTSMAN_CODE\" = s/c").await, 0);
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_told_as_a_shell_tells_it() {
        let missing = Child::start(&command(&["/does/not/exist"]), [], "s", "c").unwrap_err();
        assert_eq!(
            missing,
            Failure::new("start /does/not/exist: No such file or directory (os error 2)").with_code(127)
        );
        let folder = Child::start(&command(&["/"]), [], "s", "c").unwrap_err();
        assert_eq!(folder, Failure::new("start /: Permission denied (os error 13)").with_code(126));
    }

    #[tokio::test]
    async fn who_does_not_listen_is_killed() {
        let mut deaf = Child::start(&command(&["sh", "-c", "trap '' TERM; sleep 60 & wait"]), [], "s", "c").unwrap();
        let mut others = Signals::catch(&[]).unwrap();
        let never = std::future::pending::<()>();
        let status = deaf.stop(Signal::TERM, Duration::from_millis(100), never, &mut others).await.unwrap();
        // 143 when the signal came before the trap.
        assert!(matches!(exit_code(status), 137 | 143), "{status}");
        let mut slow = Child::start(&command(&["sh", "-c", "trap '' TERM; sleep 60 & wait"]), [], "s", "c").unwrap();
        let impatient = tokio::time::sleep(Duration::from_millis(50));
        let status = slow.stop(Signal::TERM, Duration::from_secs(60), impatient, &mut others).await.unwrap();
        assert!(matches!(exit_code(status), 137 | 143), "{status}");
    }
}
