//! How many requests may be under way at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_core::ObservedInstance;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A limit on the requests of a route, and a queue before it. The limit can be changed while requests wait.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    state: Mutex<GateState>,
}

#[derive(Debug)]
struct GateState {
    most: usize,
    /// Number of places that are to vanish when they are given back, because the limit has been lowered.
    debt: usize,
}

/// A place behind a [`Gate`].
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    permit: Option<OwnedSemaphorePermit>,
}

/// Number of requests that wait, for whatever it is.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    now: AtomicUsize,
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// As many as may wait do.
    QueueFull,
    /// It took too long.
    WaitedTooLong,
}

impl Gate {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(most)), state: Mutex::new(GateState { most, debt: 0 }) }
    }

    /// Lets in at once, if there is a place.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { gate: self.clone(), permit: Some(permit) })
    }

    /// Waits for a place.
    pub(crate) async fn enter(self: &Arc<Self>, timeout: Duration) -> Result<Place, Crowded> {
        match tokio::time::timeout(timeout, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { gate: self.clone(), permit: Some(permit) }),
            // Nobody closes it.
            Ok(Err(_)) | Err(_) => Err(Crowded::WaitedTooLong),
        }
    }

    /// Changes the limit, also for those that wait already. `None`: there is none any more.
    pub(crate) fn set_most(&self, most: Option<usize>) {
        let most = most.unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        let mut state = self.state();
        if most >= state.most {
            let more = most - state.most;
            let forgiven = more.min(state.debt);
            state.debt -= forgiven;
            self.places.add_permits(more - forgiven);
        } else {
            let fewer = state.most - most;
            state.debt += fewer - self.places.forget_permits(fewer);
        }
        state.most = most;
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if state.debt > 0
            && let Some(permit) = self.permit.take()
        {
            state.debt -= 1;
            permit.forget();
        }
    }
}

impl Waiting {
    /// Counts one more, until what is returned is dropped.
    pub(crate) fn join(&self, most: usize) -> Result<impl Drop + Send + '_, Crowded> {
        struct Joined<'a>(&'a AtomicUsize);
        impl Drop for Joined<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let joined = Joined(&self.now);
        if self.now.fetch_add(1, Ordering::Relaxed) >= most { Err(Crowded::QueueFull) } else { Ok(joined) }
    }
}

/// A limit on the requests at each instance of a service. It can be changed while requests wait.
#[derive(Debug)]
pub(crate) struct Permits {
    most: AtomicUsize,
    taken: Mutex<HashMap<Holder, usize>>,
    freed: Notify,
    /// How many have been freed so far.
    round: AtomicUsize,
}

/// Code and address: what is under way at an instance that is gone does not count for the one that has its code now.
type Holder = (Arc<str>, Option<Arc<str>>);

/// A place at an instance.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    holder: Holder,
}

impl Permits {
    /// `None`: without a limit.
    pub(crate) fn new(most: Option<usize>) -> Self {
        let most = AtomicUsize::new(most.unwrap_or(usize::MAX));
        Self { most, taken: Mutex::default(), freed: Notify::new(), round: AtomicUsize::new(0) }
    }

    /// Whether there is a limit: then each request has to take a permit.
    pub(crate) fn are_limited(&self) -> bool {
        self.most.load(Ordering::Relaxed) != usize::MAX
    }

    /// Changes the limit, also for those that wait already.
    pub(crate) fn set_most(&self, most: Option<usize>) {
        let most = most.unwrap_or(usize::MAX);
        if self.most.swap(most, Ordering::Relaxed) < most {
            self.freed.notify_waiters();
        }
    }

    /// Takes a place, if there is one.
    pub(crate) fn take(self: &Arc<Self>, instance: &ObservedInstance) -> Option<Permit> {
        let holder = (instance.code.clone(), instance.address.clone());
        let mut all = self.taken();
        let taken = all.entry(holder.clone()).or_default();
        if *taken >= self.most.load(Ordering::Relaxed) {
            return None;
        }
        *taken += 1;
        Some(Permit { permits: self.clone(), holder })
    }

    /// Returns when a place may have become free, once it has been polled or enabled.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// For a request that was woken for a place that it can do nothing with, because it wants one at another instance: wakes the next.
    /// `passed` is when the caller has done so last; so it ends when all have been asked.
    pub(crate) fn pass_on(&self, passed: &mut Option<usize>) {
        let round = self.round.load(Ordering::Acquire);
        if passed.replace(round) != Some(round) {
            self.freed.notify_one();
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut all = self.permits.taken();
        if let Some(taken) = all.get_mut(&self.holder) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.holder);
            }
        }
        drop(all);
        self.permits.round.fetch_add(1, Ordering::Release);
        self.permits.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::Instance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_has_a_length_and_an_end() {
        let (gate, waiting, second) = (Arc::new(Gate::new(1)), Waiting::default(), Duration::from_secs(1));
        let inside = gate.try_enter().unwrap();
        assert!(gate.try_enter().is_none());
        let first = async {
            let _joined = waiting.join(1)?;
            gate.enter(second).await
        };
        tokio::pin!(first);
        assert!(futures_util::poll!(&mut first).is_pending());
        assert_eq!(waiting.join(1).map(drop).unwrap_err(), Crowded::QueueFull);
        drop(inside);
        let inside = first.await.unwrap();
        assert_eq!(gate.enter(second).await.unwrap_err(), Crowded::WaitedTooLong);
        drop(inside);
        assert!(gate.try_enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_changes_counts_at_once() {
        let (gate, second) = (Arc::new(Gate::new(2)), Duration::from_secs(1));
        let mut inside = vec![gate.try_enter().unwrap(), gate.try_enter().unwrap()];
        let waiting = gate.enter(second);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        gate.set_most(Some(3));
        inside.push(waiting.await.unwrap());
        gate.set_most(Some(1));
        for left in (0..3).rev() {
            assert!(gate.try_enter().is_none(), "{left}");
            inside.pop();
        }
        let one = gate.try_enter().unwrap();
        assert!(gate.try_enter().is_none());
        gate.set_most(None);
        assert!(gate.try_enter().is_some() && gate.try_enter().is_some());
        drop(one);
    }

    #[tokio::test]
    async fn each_instance_has_so_many_permits() {
        let permits = Arc::new(Permits::new(Some(2)));
        let at = |code: &str, address: &str| ObservedInstance::from(Instance::new("s").code(code).address(address));
        let (a, b) = (at("a", "h:1"), at("b", "h:2"));
        let taken = [permits.take(&a), permits.take(&a)];
        assert!(taken.iter().all(Option::is_some) && permits.take(&a).is_none() && permits.take(&b).is_some());
        assert!(permits.take(&at("a", "h:3")).is_some(), "another process");
        let mut freed = std::pin::pin!(permits.freed());
        freed.as_mut().enable();
        permits.set_most(Some(3));
        freed.await;
        assert!(permits.take(&a).is_some());
        permits.set_most(Some(2));
        assert!(permits.take(&a).is_none());
        drop(taken);
        assert!(permits.take(&a).is_some() && permits.are_limited());
        permits.set_most(None);
        assert!(!permits.are_limited());
    }
}
