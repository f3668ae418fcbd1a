//! How many requests may be under way at a time; and how many may be sent again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A limit, and a queue of limited length before it.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    waiting: Waiting,
    timeout: Duration,
}

/// How many wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    now: AtomicUsize,
    most: usize,
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// So many wait already.
    QueueFull,
    /// It took too long.
    WaitedTooLong,
}

impl Gate {
    pub(crate) fn new(places: usize, queue: usize, timeout: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            waiting: Waiting::new(queue),
            timeout,
        }
    }

    /// Lets in at once, if there is a place.
    pub(crate) fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Result<OwnedSemaphorePermit, Crowded> {
        let _waiting = self.waiting.join()?;
        match tokio::time::timeout(self.timeout, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => Err(Crowded::WaitedTooLong),
        }
    }
}

impl Waiting {
    pub(crate) fn new(most: usize) -> Self {
        Self { now: AtomicUsize::new(0), most }
    }

    /// Counts one more, until what is returned is dropped.
    pub(crate) fn join(&self) -> Result<impl Drop + Send + '_, Crowded> {
        struct Joined<'a>(&'a AtomicUsize);
        impl Drop for Joined<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let joined = Joined(&self.now);
        if self.now.fetch_add(1, Ordering::Relaxed) >= self.most { Err(Crowded::QueueFull) } else { Ok(joined) }
    }
}

/// A limit for each instance of a service.
#[derive(Debug)]
pub(crate) struct Seats {
    most: usize,
    by_code: Mutex<HashMap<Arc<str>, usize>>,
    freed: Notify,
    /// How many have been freed so far.
    round: AtomicUsize,
}

/// A place at an instance.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    code: Arc<str>,
}

impl Seats {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, by_code: Mutex::default(), freed: Notify::new(), round: AtomicUsize::new(0) }
    }

    /// Takes a place, if there is one.
    pub(crate) fn take(self: &Arc<Self>, code: &Arc<str>) -> Option<Seat> {
        let mut by_code = self.by_code.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = by_code.entry(code.clone()).or_default();
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        Some(Seat { seats: self.clone(), code: code.clone() })
    }

    /// Returns when a place may have become free, once it has been polled or enabled.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// For whoever was woken for a place that it can do nothing with, because it wants one at another instance: wakes the next. `passed` is
    /// when the caller has done so last; so it ends when all have been asked.
    pub(crate) fn pass_on(&self, passed: &mut Option<usize>) {
        let round = self.round.load(Ordering::Acquire);
        if passed.replace(round) != Some(round) {
            self.freed.notify_one();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut by_code = self.seats.by_code.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = by_code.get_mut(&self.code) {
            *taken -= 1;
            if *taken == 0 {
                by_code.remove(&self.code);
            }
        }
        drop(by_code);
        self.seats.round.fetch_add(1, Ordering::Release);
        self.seats.freed.notify_one();
    }
}

/// How many requests may be sent again: a share of all, so that what is overloaded is not loaded with the same once more (the idea is
/// that of Finagle's retry budget).
#[derive(Debug)]
pub(crate) struct Budget {
    /// In hundredths of a retry.
    balance: AtomicI64,
    percent: i64,
    /// When retries were last given for nothing.
    granted: Mutex<Option<Instant>>,
}

/// So many a second are allowed whatever the share.
const FREE: i64 = 10;
/// So many can be saved up.
const MOST: i64 = 1000;

impl Budget {
    pub(crate) fn new(percent: u32) -> Self {
        Self { balance: AtomicI64::new(FREE * 100), percent: percent.min(100).into(), granted: Mutex::default() }
    }

    /// A request has come.
    pub(crate) fn deposit(&self) {
        if self.balance.load(Ordering::Relaxed) < MOST * 100 {
            self.balance.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    /// Whether one may be sent again.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
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
        let (budget, start) = (Budget::new(20), Instant::now());
        let granted = |now| (0..100).filter(|_| budget.withdraw(now)).count();
        // What it starts with, and what is given for nothing.
        assert_eq!(granted(start), 20);
        assert_eq!(granted(start), 0);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(granted(start), 20);
        assert_eq!(granted(start + Duration::from_secs(1)), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_has_a_length_and_an_end() {
        let gate = Gate::new(1, 1, Duration::from_secs(1));
        let inside = gate.try_enter().unwrap();
        assert!(gate.try_enter().is_none());
        let waiting = gate.enter();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(gate.enter().await.unwrap_err(), Crowded::QueueFull);
        drop(inside);
        let inside = waiting.await.unwrap();
        assert_eq!(gate.enter().await.unwrap_err(), Crowded::WaitedTooLong);
        drop(inside);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn each_instance_has_so_many_seats() {
        let seats = Arc::new(Seats::new(2));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let taken = [seats.take(&a), seats.take(&a)];
        assert!(taken.iter().all(Option::is_some) && seats.take(&a).is_none() && seats.take(&b).is_some());
        drop(taken);
        assert!(seats.take(&a).is_some());
    }
}
