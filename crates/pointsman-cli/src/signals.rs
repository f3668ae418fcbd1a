//! SIGINT and SIGTERM, which end a process, and SIGHUP, which does not.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::failure::Failure;

/// Catches SIGINT and SIGTERM from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// Starts to catch them: they no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let catch = |kind| unix::signal(kind).map_err(|error| Failure::new(format!("catch signals: {error}")));
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for the next one. Cancellation loses nothing.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
        }
    }
}

/// Whoever signals twice does not want to wait.
pub(crate) async fn or_hurry<T>(work: impl Future<Output = T>, signals: &mut Signals) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        _ = signals.next() => Err(Failure::hurried()),
    }
}

/// Catches SIGHUP from now on.
#[derive(Debug)]
pub(crate) struct Hangups(unix::Signal);

impl Hangups {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let signal = unix::signal(SignalKind::hangup());
        signal.map(Self).map_err(|error| Failure::new(format!("catch signals: {error}")))
    }

    /// Waits for the next one. Cancellation loses nothing.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}
