//! Lets an instance be registered only while it passes its check.

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::Check;

/// Whether the instance passes its check; always, without one.
#[derive(Debug)]
pub(super) struct Gate {
    checking: Option<Box<Checking>>,
}

/// A check at work.
#[derive(Debug)]
struct Checking {
    check: Check,
    health: watch::Receiver<Health>,
    /// The check goes on whatever else is done meanwhile. Ends with this value.
    _task: JoinSet<()>,
}

/// Whether an instance passes, and why not.
type Health = Result<(), String>;

impl Gate {
    pub(super) fn new(check: Option<Check>) -> Self {
        Self { checking: check.map(|check| Box::new(Checking::start(check))) }
    }

    pub(super) fn health(&self) -> Health {
        self.checking.as_ref().map_or(Ok(()), |checking| checking.health.borrow().clone())
    }

    /// From now on by this check. What an unchanged check has found out stays. Whether it is another one.
    pub(super) fn check_by(&mut self, check: Option<Check>) -> bool {
        let is_other = self.checking.as_ref().map(|checking| &checking.check) != check.as_ref();
        if is_other {
            *self = Self::new(check);
        }
        is_other
    }

    /// Waits for the health to be another one. Cancellation loses nothing.
    pub(super) async fn changed(&mut self) -> Health {
        let Some(checking) = &mut self.checking else { return std::future::pending().await };
        // In a box, because most have no check, and need no room for it.
        if Box::pin(checking.health.changed()).await.is_err() {
            // The check has broken off.
            std::future::pending::<()>().await;
        }
        checking.health.borrow_and_update().clone()
    }
}

impl Checking {
    fn start(check: Check) -> Self {
        let initial = Err(format!("{} has not been asked yet", check.probe));
        let (sender, health) = watch::channel(initial);
        let mut task = JoinSet::new();
        task.spawn(ask(check.clone(), sender));
        Self { check, health, _task: task }
    }
}

async fn ask(check: Check, health: watch::Sender<Health>) {
    let probe = check.probe.clone();
    let mut checking = check.start();
    loop {
        let found = checking.changed().await;
        match &found {
            Ok(()) => tracing::info!(%probe, "the check passes"),
            Err(why) if health.borrow().is_ok() => tracing::warn!(%probe, %why, "the check fails"),
            // It has not passed yet.
            Err(why) => tracing::info!(%probe, %why, "the check fails"),
        }
        let _ = health.send_replace(found.map_err(|why| format!("{probe}: {why}")));
    }
}
