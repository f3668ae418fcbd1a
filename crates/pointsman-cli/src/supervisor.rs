//! Notifications to a service manager: systemd with `Type=notify` or `Type=notify-reload` (sd_notify(3)).

use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// The variables by which a service manager is found. They are for this process alone: a command that it starts does not inherit them.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Whether this process has reported that it is ready. Only then does the end of a reload report it again.
static IS_READY: AtomicBool = AtomicBool::new(false);

/// Says that this process does what it was started for.
pub(crate) fn ready() {
    IS_READY.store(true, Ordering::Relaxed);
    send(&[NotifyState::Ready]);
}

/// Says how things stand, in one line.
pub(crate) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Says that this process is ending.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says that the configuration is being read again, until what is returned is dropped.
pub(crate) fn reloading() -> Reloading {
    if IS_READY.load(Ordering::Relaxed)
        && let Ok(now) = NotifyState::monotonic_usec_now()
    {
        send(&[NotifyState::Reloading, now]);
    }
    Reloading
}

/// A reload under way.
pub(crate) struct Reloading;

impl Drop for Reloading {
    fn drop(&mut self) {
        if IS_READY.load(Ordering::Relaxed) {
            ready();
        }
    }
}

/// Shows a watchdog that the tasks of this process get their turns, if there is one. Must be called within the runtime.
pub(crate) fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    tokio::spawn(async move {
        // Half of the limit, as sd_watchdog_enabled(3) advises.
        let mut turns = interval(limit / 2);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            send(&[NotifyState::Watchdog]);
        }
    });
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager at NOTIFY_SOCKET cannot be told");
    }
}
