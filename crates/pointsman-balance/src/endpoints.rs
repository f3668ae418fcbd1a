//! The state that balancers over one service share: claims in flight, failures, check results, ages.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pointsman_core::{Difference, ObservedInstance, Snapshot};

use crate::clock;
use crate::ejection::{Ejection, Ejections, Epoch};
use crate::endpoint::{Endpoint, EndpointStats, Keep, Shared};
use crate::ranking::Ranking;
use crate::rules::{CheckState, Evidence, Standing};

/// The claims in flight, the latencies and the health of one service's instances.
///
/// Each balancer has its own, unless several are given one in common ([`Builder::endpoints`](crate::Builder::endpoints)): do that
/// where several routes lead to one service, so that each sees what the others have sent. Cheap to clone; the clones are
/// one. It belongs to one service: an endpoint is known by its code and its address, and another address is another endpoint.
#[derive(Debug, Clone)]
pub struct Endpoints {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Taken when a table is prepared, never by a pick that finds one ready.
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// By what rule instances are ejected.
    pub(crate) ejection: Option<Ejection>,
    /// The results of active checks; `None` where the service is not checked.
    checks: Option<HashMap<Arc<str>, Checked>>,
    /// Since when there has been no master that takes work, where there was one before.
    pub(crate) masterless_since: Option<Instant>,
    had_master: bool,
    /// How many snapshots with a master there had been, whether or not they were followed.
    masters: u64,
    /// In the order of the codes, as the instances are in a snapshot: so both are walked side by side.
    by_code: BTreeMap<Arc<str>, Record>,
    /// The snapshot that was followed last.
    followed: Option<Arc<Snapshot>>,
    /// The codes that have left with claims still held on them.
    left: HashSet<Arc<str>>,
    /// Whether a snapshot with instances has been seen: an instance that joins after it is new, one that is in it is not.
    started: bool,
}

/// Result of the active checks of one instance.
#[derive(Debug)]
struct Checked {
    address: Option<Arc<str>>,
    passes: bool,
}

/// One endpoint's.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) endpoint: Keep,
    /// When it joined; `None` if it was there from the first.
    pub(crate) joined: Option<Instant>,
    pub(crate) ejections: Ejections,
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
        let shared = Arc::new(Shared { epoch, ranking: Ranking::default(), base: clock::now() });
        let entries = Mutex::new(Entries { ejection, ..Entries::default() });
        Self { inner: Arc::new(Inner { shared, entries }) }
    }

    /// Ejects by another rule from now on, or not at all. What has been counted stays, and so do ejections, unless there are to be none.
    pub fn set_ejection(&self, ejection: Option<Ejection>) {
        if self.lock().set_ejection(ejection) {
            self.shared().epoch.judge_by(ejection);
        }
    }

    /// Says whether the instances are checked actively. Where they are, an instance of which no result is known waits for its first,
    /// as long as another can serve. What is known already stays known.
    pub fn set_checked(&self, checked: bool) {
        let checks = &mut self.lock().checks;
        if checked == checks.is_some() {
            return;
        }
        *checks = checked.then(HashMap::new);
        self.shared().epoch.advance();
    }

    /// Takes in what the active checks of an instance say. Without effect unless [`Endpoints::set_checked`]; another address under the
    /// same code is another instance.
    pub fn set_check(&self, code: &Arc<str>, address: Option<&Arc<str>>, passes: bool) {
        if let Some(checks) = &mut self.lock().checks {
            checks.insert(code.clone(), Checked { address: address.cloned(), passes });
            self.shared().epoch.advance();
        }
    }

    /// Forgets what the checks have said of an instance that is gone.
    pub fn forget_check(&self, code: &str) {
        if let Some(checks) = &mut self.lock().checks {
            checks.remove(code);
        }
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
        entries.by_code.iter().map(|(code, entry)| (code.clone(), entry.endpoint.in_flight())).collect()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
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
    /// Whether it is another.
    fn set_ejection(&mut self, ejection: Option<Ejection>) -> bool {
        let before = std::mem::replace(&mut self.ejection, ejection);
        if ejection.is_none() {
            self.by_code.values_mut().for_each(|record| record.ejections = Ejections::default());
        }
        before != ejection
    }

    /// Returns the evidence about an instance beyond its registration.
    pub(crate) fn evidence(&self, instance: &ObservedInstance, record: &Record, now: Instant) -> Evidence {
        let check = self.checks.as_ref().map(|checks| match checks.get(&instance.code) {
            Some(checked) if checked.address == instance.address && checked.passes => CheckState::Passing,
            Some(checked) if checked.address == instance.address => CheckState::Failing,
            _ => CheckState::Unknown,
        });
        Evidence {
            check,
            ejected_until: record.ejections.ejected_until(now),
            has_failed: record.endpoint.stats.failures.have_come_while_guarded(),
        }
    }

    /// Brings the entries up to a snapshot: endpoints for those that are new or have changed; one that has left stays only while
    /// claims are held on it, so that its count is right if it returns. `masters` is [`View::masters`](pointsman_core::View::masters).
    pub(crate) fn follow(&mut self, snapshot: &Arc<Snapshot>, masters: u64, shared: &Arc<Shared>, now: Instant) {
        let before = self.followed.replace(snapshot.clone());
        let before = before.unwrap_or_else(|| Arc::new(Snapshot::empty(snapshot.service().clone())));
        let joined = self.started.then_some(now);
        for difference in before.differences(snapshot) {
            match difference {
                Difference::Joined(instance) => self.join(instance, shared, joined),
                Difference::Stayed { new, .. } => self.show(new, shared, joined),
                Difference::Left(instance) => {
                    self.left.insert(instance.code.clone());
                }
            }
        }
        let has_master = snapshot.master().is_some_and(|master| master.takes_work() && !self.is_given_up(master, now));
        if has_master {
            self.masterless_since = None;
        } else if self.had_master || self.masters != masters {
            self.masterless_since = Some(now);
        }
        (self.had_master, self.masters) = (has_master, masters);
        self.started |= !snapshot.instances().is_empty();
        self.left.retain(|code| {
            let is_held = self.by_code.get(code).is_some_and(|record| record.endpoint.in_flight() > 0);
            if !is_held {
                self.by_code.remove(code);
            }
            is_held
        });
    }

    /// An instance is there that was not before.
    fn join(&mut self, instance: &Arc<ObservedInstance>, shared: &Arc<Shared>, joined: Option<Instant>) {
        self.left.remove(&instance.code);
        if let Some(record) = self.by_code.get_mut(&instance.code) {
            record.start_anew(joined);
        }
        self.show(instance, shared, joined);
    }

    /// An instance is there, as it is now.
    fn show(&mut self, instance: &Arc<ObservedInstance>, shared: &Arc<Shared>, joined: Option<Instant>) {
        let known = self.by_code.get_mut(&instance.code);
        if let Some(record) = known.filter(|record| record.endpoint.instance.address == instance.address) {
            record.show(instance);
            return;
        }
        // At another address it is another process: neither the claims on the one before count for it, nor its failures.
        let endpoint = Endpoint::first(instance.clone(), Arc::new(EndpointStats::new(shared.clone())));
        endpoint.stats.failures.guard(instance.is_guarded());
        let record = Record { endpoint, joined, ejections: Ejections::default() };
        self.by_code.insert(instance.code.clone(), record);
    }

    /// The instances of the snapshot that was followed last, each with its record.
    pub(crate) fn of<'e, 's>(
        &'e self,
        snapshot: &'s Snapshot,
    ) -> impl Iterator<Item = (&'s Arc<ObservedInstance>, &'e Record)> + use<'e, 's> {
        let mut records = self.by_code.iter();
        snapshot.instances().iter().filter_map(move |instance| {
            // Those that are passed over have left, and are held.
            let is_of = |(code, record): &(&Arc<str>, &Record)| {
                Arc::ptr_eq(&record.endpoint.instance, instance) || **code == instance.code
            };
            records.find(is_of).map(|(_, record)| (instance, record))
        })
    }

    /// Whether it is taken for dead: a master of which that is known is about to be replaced.
    fn is_given_up(&self, instance: &ObservedInstance, now: Instant) -> bool {
        let standing = |record| Standing::of(instance, self.evidence(instance, record, now));
        self.get(&instance.code).is_some_and(|record| standing(record) == Standing::Guarded { has_failed: true })
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

    fn show(&mut self, instance: &Arc<ObservedInstance>) {
        self.endpoint.stats.failures.guard(instance.is_guarded());
        if !Arc::ptr_eq(&self.endpoint.instance, instance) && self.endpoint.instance != *instance {
            self.endpoint = Endpoint::after(&self.endpoint, instance.clone());
        }
    }
}
