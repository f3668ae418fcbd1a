//! The local deadline of a role.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Until when this process may believe that the registry still knows it: a point on the monotonic clock.
///
/// A process that is paused, or cut off in silence, learns nothing; what it holds must end by itself before the registry
/// can hand it to another. So every role that depends on a session carries the session's lease, and whoever asks for
/// the role compares the lease with the clock, whether or not any task has had a chance to run. One lease belongs to one
/// connection: it is ended when that connection is lost, and the next connection brings a new one.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    base: Instant,
    until: Arc<AtomicU64>,
    /// Wakes those who wait for it to hold again, or to end.
    changed: Arc<Notify>,
}

impl Lease {
    /// A lease that has already run out.
    pub(crate) fn new() -> Self {
        Self { base: Instant::now(), until: Arc::default(), changed: Arc::default() }
    }

    /// Lets it hold until `until`, unless it has been ended. It is never shortened.
    pub(crate) fn extend(&self, until: Instant) {
        let nanos = u64::try_from(until.saturating_duration_since(self.base).as_nanos()).unwrap_or(ENDED - 1);
        // `fetch_update` so that a heartbeat that was under way when the connection was lost cannot revive the lease.
        let raise = |old: u64| (old != ENDED && old < nanos).then_some(nanos);
        let held = self.holds();
        if self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise).is_ok() && !held {
            self.changed.notify_waiters();
        }
    }

    /// Ends it for good.
    pub(crate) fn end(&self) {
        self.until.store(ENDED, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether it has been ended for good.
    pub(crate) fn is_over(&self) -> bool {
        self.until.load(Ordering::Acquire) == ENDED
    }

    /// Until when it holds; in the past if it does not.
    pub(crate) fn until(&self) -> Instant {
        match self.until.load(Ordering::Acquire) {
            ENDED => self.base,
            nanos => self.base + Duration::from_nanos(nanos),
        }
    }

    /// Whether it holds now.
    pub(crate) fn holds(&self) -> bool {
        Instant::now() < self.until()
    }

    /// Returns when it holds no longer.
    pub(crate) async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.holds() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.until()) => {}
                () = changed => {}
            }
        }
    }

    /// Returns when it holds, at once if it does. Never, if it has been ended.
    pub(crate) async fn held(&self) {
        loop {
            let changed = self.changed.notified();
            if self.holds() {
                return;
            }
            changed.await;
        }
    }
}

const ENDED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_and_cannot_be_revived_once_ended() {
        let lease = Lease::new();
        assert!(!lease.holds());
        lease.extend(Instant::now() + Duration::from_secs(2));
        lease.extend(Instant::now() + Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert!(lease.holds());
        lease.ended().await;
        assert!(!lease.holds());
        lease.extend(Instant::now() + Duration::from_secs(2));
        assert!(lease.holds());
        lease.end();
        lease.extend(Instant::now() + Duration::from_secs(9));
        assert!(!lease.holds());
    }
}
