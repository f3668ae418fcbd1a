//! How those who serve metrics ask for them: only the loop that serves has everything that is counted.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// How long an answer may take: while things start or end there is none.
const ANSWER: Duration = Duration::from_secs(2);
/// So many wait at a time.
const WAITING: usize = 32;

/// Where questions come in.
#[derive(Debug)]
pub(super) struct Questions {
    asking: Asking,
    askers: mpsc::Receiver<Asker>,
}

/// Asks.
#[derive(Debug, Clone)]
pub(super) struct Asking(mpsc::Sender<Asker>);

/// Somebody who waits for the metrics.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) which: Which,
    answer: oneshot::Sender<Result<String, String>>,
}

/// What of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All.
    All,
    /// What the agent does not know by itself.
    BesideAgent,
}

impl Questions {
    pub(super) fn new() -> Self {
        let (sender, askers) = mpsc::channel(WAITING);
        Self { asking: Asking(sender), askers }
    }

    /// For somebody who is to ask.
    pub(super) fn asking(&self) -> Asking {
        self.asking.clone()
    }

    /// Waits for the next one. Cancellation loses nobody.
    pub(super) async fn next(&mut self) -> Asker {
        match self.askers.recv().await {
            Some(asker) => asker,
            // It has a sender itself.
            None => std::future::pending().await,
        }
    }
}

impl Asking {
    /// Text as Prometheus reads it, without the end; or why there is none.
    pub(super) async fn metrics(&self, which: Which) -> Result<String, String> {
        let (sender, answer) = oneshot::channel();
        let asking = async {
            self.0.send(Asker { which, answer: sender }).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWER, asking).await {
            Ok(Some(metrics)) => metrics,
            _ => Err("no metrics while things start or end".to_owned()),
        }
    }
}

impl Asker {
    /// Gives them, or says why there are none.
    pub(super) fn answer(self, metrics: Result<String, String>) {
        // Whoever has gone needs no answer.
        let _ = self.answer.send(metrics);
    }
}
