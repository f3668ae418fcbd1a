//! Lets an instance be registered only while it passes its check.

use crate::check::{Check, Checking};

/// Whether the instance passes its check; always, without one.
#[derive(Debug)]
pub(super) struct Gate {
    check: Option<Check>,
    checking: Option<Checking>,
    health: Result<(), String>,
}

impl Gate {
    pub(super) fn new(check: Option<Check>) -> Self {
        let mut gate = Self { check: None, checking: None, health: Ok(()) };
        gate.check_by(check);
        gate
    }

    /// Whether the instance passes, and why not.
    pub(super) fn health(&self) -> Result<(), String> {
        self.health.clone()
    }

    /// From now on by this check. What an unchanged check has found out stays. Whether it is another one.
    pub(super) fn check_by(&mut self, check: Option<Check>) -> bool {
        if self.check == check {
            return false;
        }
        self.health = match &check {
            Some(check) => Err(format!("{} has not been asked yet", check.probe)),
            None => Ok(()),
        };
        self.checking = check.clone().map(Check::start);
        self.check = check;
        true
    }

    /// Waits for the health to be another one. Cancellation loses nothing.
    pub(super) async fn changed(&mut self) -> Result<(), String> {
        let (Some(check), Some(checking)) = (&self.check, &mut self.checking) else {
            return std::future::pending().await;
        };
        let health = checking.changed().await;
        match &health {
            Ok(()) => tracing::info!(probe = %check.probe, "the check passes"),
            Err(why) if self.health.is_ok() => tracing::warn!(probe = %check.probe, why, "the check fails"),
            // It has not passed yet.
            Err(why) => tracing::info!(probe = %check.probe, why, "the check fails"),
        }
        self.health = health.map_err(|why| format!("{}: {why}", check.probe));
        self.health.clone()
    }
}
