//! What balancers over one service share: who has how much in flight, who fails, who is new.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pointsman_core::{Instance, Snapshot};

use crate::ejection::{Ejection, Ejections, Epoch};
use crate::endpoint::{Endpoint, EndpointStats, Keep, Shared};
use crate::ranking::Ranking;

/// The claims in flight, the latencies and the health of one service's instances.
///
/// Each balancer has its own, unless several are given one in common ([`Builder::endpoints`](crate::Builder::endpoints)): do that
/// where several routes lead to one service, so that each sees what the others have sent. Cheap to clone; the clones are
/// one. Keyed by code, so it belongs to one service.
#[derive(Debug, Clone)]
pub struct Endpoints {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    ejection: Option<Ejection>,
    /// Taken when a table is prepared, never by a pick that finds one ready.
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
pub(crate) struct Entries {
    by_code: HashMap<Arc<str>, Record>,
    /// How many snapshots have been followed.
    round: u64,
    /// Whether a snapshot with instances has been seen: who joins after it is new, who is in it is not.
    started: bool,
}

/// One code's.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) endpoint: Keep,
    /// When it joined; `None` if it was there from the first.
    pub(crate) joined: Option<Instant>,
    pub(crate) ejections: Ejections,
    /// The last round in which it was there.
    seen: u64,
}

impl Endpoints {
    /// Nothing in flight, with the default [`Ejection`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_ejection(Some(Ejection::default()))
    }

    /// Nothing in flight; ejecting by this rule, or never.
    #[must_use]
    pub fn with_ejection(ejection: Option<Ejection>) -> Self {
        let epoch = Epoch::new(ejection);
        let shared = Arc::new(Shared { epoch, ranking: Ranking::default(), base: Instant::now() });
        Self { inner: Arc::new(Inner { shared, ejection, entries: Mutex::default() }) }
    }

    /// How many claims are in flight at the instance with this code; 0 for one that is not known.
    #[must_use]
    pub fn in_flight(&self, code: &str) -> usize {
        self.lock().by_code.get(code).map_or(0, |entry| entry.endpoint.in_flight())
    }

    /// How many claims are in flight at each instance, and at each that has left with claims still held on it; in the
    /// order of the codes.
    #[must_use]
    pub fn all_in_flight(&self) -> Vec<(Arc<str>, usize)> {
        let entries = self.lock();
        let figures = entries.by_code.iter().map(|(code, entry)| (code.clone(), entry.endpoint.in_flight()));
        let mut figures: Vec<_> = figures.collect();
        figures.sort_unstable();
        figures
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn ejection(&self) -> Option<&Ejection> {
        self.inner.ejection.as_ref()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Entries> {
        // No user code runs under this lock, and each step leaves the map whole.
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The ranking holds endpoints, and endpoints hold the ranking.
        self.shared.ranking.clear();
    }
}

impl Entries {
    /// Brings the entries up to a snapshot: endpoints for who is new or has changed; who has left stays only while claims are
    /// held on it, so that its count is right if it returns.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, shared: &Arc<Shared>, now: Instant) {
        let (before, round) = (self.round, self.round + 1);
        self.round = round;
        let joined = self.started.then_some(now);
        for instance in snapshot.instances() {
            if let Some(entry) = self.by_code.get_mut(&instance.code) {
                if entry.seen != before {
                    entry.start_anew(joined);
                }
                entry.seen = round;
                entry.show(instance);
            } else {
                let endpoint = Endpoint::first(instance.clone(), Arc::new(EndpointStats::new(shared.clone())));
                let entry = Record { endpoint, joined, ejections: Ejections::default(), seen: round };
                self.by_code.insert(instance.code.clone(), entry);
            }
        }
        self.started |= !snapshot.instances().is_empty();
        self.by_code.retain(|_, entry| entry.seen == round || entry.endpoint.in_flight() > 0);
    }

    pub(crate) fn get(&self, code: &str) -> Option<&Record> {
        self.by_code.get(code)
    }

    pub(crate) fn get_mut(&mut self, code: &str) -> Option<&mut Record> {
        self.by_code.get_mut(code)
    }
}

impl Record {
    /// It has left and come back: its latencies and failures were those of another process.
    fn start_anew(&mut self, joined: Option<Instant>) {
        self.joined = joined;
        self.ejections = Ejections::default();
        self.endpoint.stats.failures.reset();
        self.endpoint.stats.ewma.reset();
    }

    fn show(&mut self, instance: &Arc<Instance>) {
        if !Arc::ptr_eq(&self.endpoint.instance, instance) && self.endpoint.instance != *instance {
            self.endpoint = Endpoint::after(&self.endpoint, instance.clone());
        }
    }
}
