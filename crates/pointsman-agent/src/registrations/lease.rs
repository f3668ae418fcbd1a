//! How long a registration lasts without being renewed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Until when a registration lasts without being renewed, on the monotonic clock.
#[derive(Debug)]
pub(super) struct Lease {
    base: Instant,
    /// Milliseconds after `base`.
    until: AtomicU64,
    ttl: AtomicU64,
}

/// The lease of a connection.
const NEVER: u64 = u64::MAX;
/// A lease that has run out cannot be renewed any more.
const OVER: u64 = u64::MAX - 1;

impl Lease {
    pub(super) fn new(ttl: Option<Duration>) -> Self {
        let lease = Self { base: Instant::now(), until: AtomicU64::new(NEVER), ttl: AtomicU64::new(NEVER) };
        lease.rebind(ttl);
        lease
    }

    /// Lets it last for `ttl` from now, or for ever.
    pub(super) fn rebind(&self, ttl: Option<Duration>) {
        match ttl {
            None => self.ttl.store(NEVER, Ordering::Release),
            Some(ttl) => self.set_ttl(ttl),
        }
        let until = if ttl.is_none() { NEVER } else { self.fresh() };
        let raise = |old: u64| (old != OVER).then_some(until);
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise);
    }

    pub(super) fn set_ttl(&self, ttl: Duration) {
        self.ttl.store(millis(ttl), Ordering::Release);
    }

    fn fresh(&self) -> u64 {
        millis(self.base.elapsed()).saturating_add(self.ttl.load(Ordering::Acquire)).min(OVER - 1)
    }

    /// Whether it could be renewed.
    pub(super) fn renew(&self) -> bool {
        // From now, also where that is sooner: the lease may be shorter than it was. Asked for with each attempt, so that of two renewals at once
        // the later one counts.
        let renewed = |old: u64| match old {
            OVER => None,
            NEVER => Some(NEVER),
            _ => Some(self.fresh()),
        };
        self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, renewed).is_ok()
    }

    /// Ends it for good, if its time has come. Otherwise when that will be.
    pub(super) fn try_end(&self) -> Option<Option<Instant>> {
        let until = self.until.load(Ordering::Acquire);
        match until {
            NEVER => Some(None),
            OVER => None,
            until if millis(self.base.elapsed()) < until => Some(Some(self.base + Duration::from_millis(until))),
            // A renewal that comes in just now counts.
            old => match self.until.compare_exchange(old, OVER, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => None,
                Err(_) => Some(Some(self.base + Duration::from_millis(old))),
            },
        }
    }

    /// Ends it, whatever its time.
    pub(super) fn finish(&self) {
        self.until.store(OVER, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        self.until.load(Ordering::Acquire) == OVER
    }

    pub(super) fn remaining(&self) -> Option<Duration> {
        match self.until.load(Ordering::Acquire) {
            NEVER => None,
            OVER => Some(Duration::ZERO),
            until => Some(Duration::from_millis(until).saturating_sub(self.base.elapsed())),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(OVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_counts_by_the_newest_ttl() {
        let lease = Lease::new(Some(Duration::from_secs(3600)));
        tokio::time::advance(Duration::from_secs(1)).await;
        lease.set_ttl(Duration::from_secs(10));
        assert!(lease.renew());
        assert_eq!(lease.remaining(), Some(Duration::from_secs(10)));
        lease.set_ttl(Duration::from_secs(60));
        assert!(lease.renew());
        assert_eq!(lease.remaining(), Some(Duration::from_secs(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_has_run_out_is_not_revived() {
        let lease = Lease::new(Some(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(lease.renew());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(lease.remaining(), Some(Duration::from_secs(4)));
        let until = lease.try_end().unwrap().unwrap();
        assert_eq!(until - Instant::now(), Duration::from_secs(4));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(lease.try_end(), None);
        assert!(!lease.renew());
        assert_eq!(lease.remaining(), Some(Duration::ZERO));
        let bound = Lease::new(None);
        assert!(bound.renew() && bound.remaining().is_none() && bound.try_end() == Some(None));
    }
}
