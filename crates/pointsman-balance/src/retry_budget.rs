//! How often calls are made again.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many calls may be made again: a share of all, so that what is overloaded is not loaded with the same once more (the idea is
/// that of Finagle's retry budget).
///
/// ```
/// use std::time::Instant;
/// use pointsman_balance::RetryBudget;
///
/// let budget = RetryBudget::new(20);
/// budget.deposit();
/// // The call has failed.
/// assert!(budget.withdraw(Instant::now()));
/// ```
#[derive(Debug)]
pub struct RetryBudget {
    /// In hundredths of a retry.
    balance: AtomicI64,
    percent: i64,
    /// When retries were last given for nothing.
    granted: Mutex<Option<Instant>>,
}

/// Retries per second that are allowed in addition to the share.
const FREE: i64 = 10;
/// Maximum number of retries that can be saved up.
const MOST: i64 = 1000;

impl RetryBudget {
    /// A budget of `percent` retries per 100 calls (at most 100), and ten per second in addition.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self { balance: AtomicI64::new(FREE * 100), percent: percent.min(100).into(), granted: Mutex::default() }
    }

    /// A call has begun.
    pub fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < MOST * 100 {
            self.balance.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    /// Whether one may be made again.
    #[must_use]
    pub fn withdraw(&self, now: Instant) -> bool {
        if self.balance.fetch_sub(100, Ordering::Relaxed) >= 100 {
            return true;
        }
        self.balance.fetch_add(100, Ordering::Relaxed);
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.is_some_and(|granted| now.saturating_duration_since(granted) < Duration::from_secs(1)) {
            return false;
        }
        *granted = Some(now);
        self.balance.fetch_add((FREE - 1) * 100, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_and_a_few_a_second() {
        let (budget, start) = (RetryBudget::new(20), Instant::now());
        let granted = |now| (0..100).filter(|_| budget.withdraw(now)).count();
        // What it starts with, and what is given for nothing.
        assert_eq!(granted(start), 20);
        assert_eq!(granted(start), 0);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(granted(start), 20);
        assert_eq!(granted(start + Duration::from_secs(1)), 10);
    }
}
