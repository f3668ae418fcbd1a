//! What balancers over one service share: who has how much in flight, who fails, who is new.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pointsman_core::{Instance, Snapshot};

use crate::health::{Alarm, Ejection, Record};
use crate::ranking::Ranking;
use crate::seat::{Keep, Person, Seat, Shared};

/// The claims in flight, the latencies and the health of one service's instances.
///
/// Each balancer has its own, unless several are given one in common ([`Builder::loads`](crate::Builder::loads)): do that
/// where several routes lead to one service, so that each sees what the others have sent. Cheap to clone; the clones are
/// one. Keyed by code, so it belongs to one service.
#[derive(Debug, Clone)]
pub struct Loads {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    ejection: Option<Ejection>,
    /// Taken when a table is prepared, never by a pick that finds one ready.
    accounts: Mutex<Accounts>,
}

#[derive(Debug, Default)]
pub(crate) struct Accounts {
    by_code: HashMap<Arc<str>, Account>,
    /// How many snapshots have been followed.
    round: u64,
    /// Whether a snapshot with instances has been seen: who joins after it is new, who is in it is not.
    started: bool,
}

/// One code's.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) seat: Keep,
    /// When it joined; `None` if it was there from the first.
    pub(crate) joined: Option<Instant>,
    pub(crate) record: Record,
    /// The last round in which it was there.
    seen: u64,
}

impl Loads {
    /// Nothing in flight, with the default [`Ejection`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_ejection(Some(Ejection::default()))
    }

    /// Nothing in flight; ejecting by this rule, or never.
    #[must_use]
    pub fn with_ejection(ejection: Option<Ejection>) -> Self {
        let alarm = Alarm::new(ejection);
        let shared = Arc::new(Shared { alarm, ranking: Ranking::default(), base: Instant::now() });
        Self { inner: Arc::new(Inner { shared, ejection, accounts: Mutex::default() }) }
    }

    /// How many claims are in flight at the instance with this code; 0 for one that is not known.
    #[must_use]
    pub fn in_flight(&self, code: &str) -> usize {
        self.lock().by_code.get(code).map_or(0, |account| account.seat.in_flight())
    }

    /// How many claims are in flight at each instance, and at each that has left with claims still held on it; in the
    /// order of the codes.
    #[must_use]
    pub fn all_in_flight(&self) -> Vec<(Arc<str>, usize)> {
        let accounts = self.lock();
        let figures = accounts.by_code.iter().map(|(code, account)| (code.clone(), account.seat.in_flight()));
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, Accounts> {
        // No user code runs under this lock, and each step leaves the map whole.
        self.inner.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Loads {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The ranking holds seats, and seats hold the ranking.
        self.shared.ranking.clear();
    }
}

impl Accounts {
    /// Brings the accounts up to a snapshot: seats for who is new or has changed; who has left stays only while claims are
    /// held on it, so that its count is right if it returns.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, shared: &Arc<Shared>, now: Instant) {
        let (before, round) = (self.round, self.round + 1);
        self.round = round;
        let joined = self.started.then_some(now);
        for instance in snapshot.instances() {
            if let Some(account) = self.by_code.get_mut(&instance.code) {
                if account.seen != before {
                    account.start_anew(joined);
                }
                account.seen = round;
                account.show(instance);
            } else {
                let seat = Seat::first(instance.clone(), Arc::new(Person::new(shared.clone())));
                let account = Account { seat, joined, record: Record::default(), seen: round };
                self.by_code.insert(instance.code.clone(), account);
            }
        }
        self.started |= !snapshot.instances().is_empty();
        self.by_code.retain(|_, account| account.seen == round || account.seat.in_flight() > 0);
    }

    pub(crate) fn get(&self, code: &str) -> Option<&Account> {
        self.by_code.get(code)
    }

    pub(crate) fn get_mut(&mut self, code: &str) -> Option<&mut Account> {
        self.by_code.get_mut(code)
    }
}

impl Account {
    /// It has left and come back: its latencies and failures were those of another process.
    fn start_anew(&mut self, joined: Option<Instant>) {
        self.joined = joined;
        self.record = Record::default();
        self.seat.person.failures.reset();
        self.seat.person.ewma.reset();
    }

    fn show(&mut self, instance: &Arc<Instance>) {
        if !Arc::ptr_eq(&self.seat.instance, instance) && self.seat.instance != *instance {
            self.seat = Seat::after(&self.seat, instance.clone());
        }
    }
}
