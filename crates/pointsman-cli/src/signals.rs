//! The signals that this process catches: those that end it, and those that mean something else.

use std::future::poll_fn;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// Signals that are caught from now on: they no longer do by themselves what the system has them do.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Catches SIGINT and SIGTERM.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::catch(&[Signal::INT, Signal::TERM])
    }

    /// Catches these.
    pub(crate) fn catch(signals: &[Signal]) -> Result<Self, Failure> {
        let caught = |signal: &Signal| Ok((*signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        let all = signals.iter().map(caught).collect::<std::io::Result<_>>();
        all.map(Self).map_err(|error| Failure::new(format!("catch signals: {error}")))
    }

    /// Waits for the next one; without any, for ever. Cancellation loses nothing.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let received = self.0.iter_mut().find_map(|(signal, caught)| match caught.poll_recv(context) {
                Poll::Ready(Some(())) => Some(*signal),
                _ => None,
            });
            received.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Whoever signals twice does not want to wait.
pub(crate) async fn or_hurry<T>(work: impl Future<Output = T>, signals: &mut Signals) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        _ = signals.next() => Err(Failure::hurried()),
    }
}

/// Whether this process was started so that it ignores a signal, as `nohup` does with SIGHUP. To catch it would undo that.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, signal)
}

/// Reads the mask of `/proc/PID/status` (proc_pid_status(5)).
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal.as_raw() - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        let ignored = [Signal::HUP, Signal::INT, Signal::PIPE, Signal::TERM].map(|signal| ignores(status, signal));
        assert_eq!(ignored, [true, false, true, false]);
        assert!(!ignores("", Signal::HUP));
    }
}
