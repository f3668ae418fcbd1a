//! What `dev` has counted and seen so far.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the picks went, and what happened.
#[derive(Debug)]
pub(super) struct Board {
    started: Instant,
    picks: BTreeMap<(Arc<str>, Arc<str>), u64>,
    calls: u64,
    failed: u64,
    unserved: u64,
    events: VecDeque<(Duration, String)>,
}

/// So many events are remembered.
const EVENTS: usize = 100;

impl Board {
    /// Nothing counted, nothing seen.
    pub(super) fn new() -> Self {
        let picks = BTreeMap::new();
        Self { started: Instant::now(), picks, calls: 0, failed: 0, unserved: 0, events: VecDeque::new() }
    }

    /// A call goes to this instance.
    pub(super) fn count_pick(&mut self, service: &Arc<str>, code: &Arc<str>) {
        self.calls += 1;
        *self.picks.entry((service.clone(), code.clone())).or_default() += 1;
    }

    /// A call came to nothing.
    pub(super) fn count_failed(&mut self) {
        self.failed += 1;
    }

    /// There was nobody to pick.
    pub(super) fn count_unserved(&mut self) {
        self.unserved += 1;
    }

    /// Starts to count the picks anew.
    pub(super) fn forget_picks(&mut self) {
        self.picks.clear();
    }

    /// How many picks went to this instance.
    pub(super) fn picks(&self, service: &Arc<str>, code: &Arc<str>) -> u64 {
        self.picks.get(&(service.clone(), code.clone())).copied().unwrap_or(0)
    }

    /// Calls, failed ones, and those that nobody was there for.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        (self.calls, self.failed, self.unserved)
    }

    /// Something happened now.
    pub(super) fn add_event(&mut self, event: String) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((self.started.elapsed(), event));
    }

    /// What happened, the newest last, and how long after the start.
    pub(super) fn events(&self) -> impl DoubleEndedIterator<Item = &(Duration, String)> + ExactSizeIterator {
        self.events.iter()
    }

    /// Since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
