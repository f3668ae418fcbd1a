//! A view and an algorithm: `pick` gives a claim.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use pointsman_core::{Snapshot, View};
use smallvec::SmallVec;

use crate::algorithm::Algorithm;
use crate::claim::Claim;
use crate::clock;
use crate::ejection::Ejection;
use crate::endpoint::Endpoint;
use crate::endpoints::Endpoints;
use crate::error::PickError;
use crate::explanation::Explanation;
use crate::retry_budget::RetryBudget;
use crate::rng::Rng;
use crate::rules::Candidates;
use crate::standings::{Rules, Standings};
use crate::table::{Ask, Claimed, Passes, Sources, Table, with_last_used};
use crate::turns::{NOBODY, Turns};

/// Picks instances of one service by one algorithm. Cheap to clone; the clones are one balancer.
///
/// ```
/// use std::sync::Arc;
/// use pointsman_balance::{Algorithm, Balancer};
/// use pointsman_core::{Instance, ObservedInstance, Snapshot, View};
///
/// let instances = ["127.0.0.1:50001", "127.0.0.1:50002"].map(|at| Arc::new(ObservedInstance::from(Instance::new("s").address(at))));
/// let view = View::fixed(Snapshot::new("s", 1, instances.to_vec()));
/// let balancer = Balancer::new(view, Algorithm::LeastConnections);
///
/// let claim = balancer.pick("/data/video")?;
/// let reply: Result<(), std::io::Error> = Ok(()); // of a call to claim.address()
/// claim.report(&reply);
/// # Ok::<(), pointsman_balance::PickError>(())
/// ```
///
/// As long as nothing changes, a pick reads a table that was prepared before: it takes no lock (least connections excepted,
/// see there), allocates nothing, and asks no clock (unless somebody is ejected or warming up, or the algorithm measures
/// latencies). The first pick after a change prepares the next table; others wait for it. What takes longest of that, the hashes'
/// table for more than 1,024 instances, is left to a thread, which lives for as long as there is something to build.
#[derive(Clone)]
pub struct Balancer {
    inner: Arc<Inner>,
}

/// Sets up a [`Balancer`]; from [`Balancer::builder`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    view: View,
    algorithm: Algorithm,
    seed: Option<u64>,
    rules: Rules,
    ejection: Option<Ejection>,
    endpoints: Option<Endpoints>,
    retry_budget: u32,
}

struct Inner {
    /// Tells the tables of balancers apart.
    number: u64,
    view: View,
    algorithm: Algorithm,
    rules: Rules,
    endpoints: Endpoints,
    sources: Sources,
    retry_budget: RetryBudget,
    table: ArcSwapOption<Table>,
    /// Held by the one that prepares the next table.
    preparing: Mutex<()>,
}

/// Finagle's default, and the proxy's.
const RETRY_BUDGET: u32 = 20;

/// Maximum number of excluded instances without an allocation.
const FEW: usize = 8;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

impl Balancer {
    /// A balancer with the defaults of [`Builder`].
    #[must_use]
    pub fn new(view: View, algorithm: Algorithm) -> Self {
        Self::builder(view).algorithm(algorithm).build()
    }

    /// Sets up a balancer over the instances in `view`.
    pub fn builder(view: View) -> Builder {
        Builder {
            view,
            algorithm: Algorithm::default(),
            seed: None,
            rules: Rules { candidates: Candidates::Normals, fall_back_to_master: true, slow_start: None },
            ejection: Some(Ejection::default()),
            endpoints: None,
            retry_budget: RETRY_BUDGET,
        }
    }

    /// Picks an instance. The key (a client's address, a URL, a topic) decides only with the hashes; the other algorithms
    /// take no notice of it.
    ///
    /// # Errors
    ///
    /// [`PickError`], when no instance can take work. Never panics, and waits for nothing but the preparation of a table.
    #[inline]
    pub fn pick(&self, key: impl AsRef<[u8]>) -> Result<Claim, PickError> {
        self.claim(key.as_ref(), None)
    }

    /// As [`Balancer::pick`], without a key: with the hashes, one by chance.
    ///
    /// # Errors
    ///
    /// As [`Balancer::pick`].
    pub fn pick_any(&self) -> Result<Claim, PickError> {
        if self.inner.algorithm.uses_key() { self.claim(&self.any_key(), None) } else { self.claim(&[], None) }
    }

    pub(crate) fn any_key(&self) -> [u8; 8] {
        self.inner.sources.rng.next().to_le_bytes()
    }

    /// As [`Balancer::pick`], at a given time: slow start, ejections and latencies go by it.
    ///
    /// # Errors
    ///
    /// As [`Balancer::pick`].
    pub fn pick_at(&self, key: impl AsRef<[u8]>, now: Instant) -> Result<Claim, PickError> {
        self.claim(key.as_ref(), Some(now))
    }

    /// Picks an instance whose code is not in `tried`: for trying again elsewhere. Where all those that would be picked otherwise have been
    /// tried, the next are used in the order of [`Tier`](crate::Tier): the master, and then those that are ejected, guarded or failing. Those
    /// whose last call has failed come last within their tier. As fast as a pick as long as most of the others will do; it looks at all where not.
    ///
    /// # Errors
    ///
    /// As [`Balancer::pick`]; [`PickError::AllExcluded`] when there is no other.
    pub fn pick_excluding(&self, key: impl AsRef<[u8]>, tried: &[impl AsRef<str>]) -> Result<Claim, PickError> {
        self.pick_with_room::<_, &str>(key, tried, &[])
    }

    /// As [`Balancer::pick_excluding`], but for those in `full` as well, which have as much as they may. These keep their tier: it is
    /// better to wait for one of them than to use the next.
    ///
    /// # Errors
    ///
    /// As [`Balancer::pick_excluding`]; [`PickError::NoRoom`] when all that would be picked are full.
    pub fn pick_with_room<T: AsRef<str>, F: AsRef<str>>(
        &self,
        key: impl AsRef<[u8]>,
        tried: &[T],
        full: &[F],
    ) -> Result<Claim, PickError> {
        // Read out first: what the caller's types do in `as_ref` must not run under a lock.
        let tried: SmallVec<[&str; FEW]> = tried.iter().map(AsRef::as_ref).collect();
        let full: SmallVec<[&str; FEW]> = full.iter().map(AsRef::as_ref).collect();
        let passes: Passes<'_> = &|endpoint| !tried.contains(&&*endpoint.instance.code);
        let has_room: Passes<'_> = &|endpoint| !full.contains(&&*endpoint.instance.code);
        let now = self.inner.start(None);
        let ask = Ask { owner: self.inner.number, key: key.as_ref(), now };
        let claimed = self.with_table(now, |table| table.claim_if(&self.inner.sources, ask, passes, has_room))?;
        Ok(self.inner.made_of(claimed, now))
    }

    /// Claims the instance with this code, whatever its role, if it serves as well as any other: for a caller that has reasons of its own
    /// to stay with an instance. `None` where it is drained, guarded, ejected or failing, or, with [`Candidates::Master`], is not the
    /// master. O(n).
    #[must_use]
    pub fn pick_code(&self, code: &str) -> Option<Claim> {
        let now = self.inner.start(None);
        let endpoint = self.with_table(now, |table| table.claim_code(code))?;
        Some(self.inner.made(endpoint, now))
    }

    /// Who would be picked for this key, out of whom, and why; nothing is picked, and the turn stays where it is. Where
    /// chance decides and there is no seed, the next pick may fall otherwise.
    #[must_use]
    pub fn explain(&self, key: impl AsRef<[u8]>) -> Explanation {
        self.explain_at(key, clock::now())
    }

    /// As [`Balancer::explain`], at a given time.
    #[must_use]
    pub fn explain_at(&self, key: impl AsRef<[u8]>, now: Instant) -> Explanation {
        self.explain_excluding_at::<&str>(key, &[], now)
    }

    /// As [`Balancer::explain_at`], for [`Balancer::pick_excluding`].
    #[must_use]
    pub fn explain_excluding_at<C: AsRef<str>>(
        &self,
        key: impl AsRef<[u8]>,
        excluded: &[C],
        now: Instant,
    ) -> Explanation {
        let inner = &*self.inner;
        let sources = inner.sources.peek(inner.number);
        let ask = Ask { owner: NOBODY, key: key.as_ref(), now: Some(now) };
        let excluded: Vec<&str> = excluded.iter().map(AsRef::as_ref).collect();
        let excludes = |endpoint: &Endpoint| excluded.contains(&&*endpoint.instance.code);
        let explain = |table: &Table| {
            let chosen = match excluded.is_empty() {
                true => table.peek(&sources, ask),
                false => table.peek_if(&sources, ask, &|endpoint| !excludes(endpoint)),
            };
            let chosen = chosen.ok_or_else(|| table.refusal());
            Explanation::new(&table.standings, inner.algorithm, chosen, &excludes, now)
        };
        self.with_table(Some(now), explain)
    }

    /// Among which instances it chooses.
    #[must_use]
    pub fn candidates(&self) -> Candidates {
        self.inner.rules.candidates
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.inner.algorithm
    }

    /// The newest snapshot of the service.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.view.load()
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> Arc<str> {
        self.snapshot().service().clone()
    }

    /// The retry budget of [`Balancer::call`], for retries by hand as well.
    #[must_use]
    pub fn retry_budget(&self) -> &RetryBudget {
        &self.inner.retry_budget
    }

    /// The endpoints, to be shared with another balancer over the same service.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.inner.endpoints
    }

    /// How many claims are in flight at each instance, in the order of the codes.
    #[must_use]
    pub fn in_flight(&self) -> Vec<(Arc<str>, usize)> {
        // So that also who has joined since the last pick is listed.
        self.with_table(None, |_| {});
        self.inner.endpoints.all_in_flight()
    }

    #[cfg(test)]
    pub(crate) fn sources(&self) -> &Sources {
        &self.inner.sources
    }

    #[inline]
    fn claim(&self, key: &[u8], now: Option<Instant>) -> Result<Claim, PickError> {
        let now = self.inner.start(now);
        let claim = |table: &Table| table.claim(&self.inner.sources, Ask { owner: self.inner.number, key, now });
        match self.with_table(now, claim) {
            Some(endpoint) => Ok(self.inner.made_by_algorithm(endpoint, now)),
            None => self.claim_or_refuse(now, claim),
        }
    }

    /// There was none a moment ago: looks again, and says why by the table that was looked at.
    #[cold]
    #[inline(never)]
    fn claim_or_refuse(
        &self,
        now: Option<Instant>,
        claim: impl Fn(&Table) -> Option<Arc<Endpoint>>,
    ) -> Result<Claim, PickError> {
        let table = self.inner.fetch(now);
        claim(&table).map(|endpoint| self.inner.made_by_algorithm(endpoint, now)).ok_or_else(|| table.refusal())
    }

    /// Runs `with` on a table that holds now.
    #[inline]
    fn with_table<T>(&self, now: Option<Instant>, with: impl Fn(&Table) -> T) -> T {
        let inner = &*self.inner;
        with_last_used(inner.number, |table| inner.holds(table, now), || inner.fetch(now), with)
    }
}

impl Inner {
    /// The clock is asked only where latencies matter: that costs as much as a pick.
    #[inline]
    fn start(&self, now: Option<Instant>) -> Option<Instant> {
        if self.algorithm == Algorithm::PeakEwma { Some(now.unwrap_or_else(clock::now)) } else { now }
    }

    #[inline]
    fn holds(&self, table: &Table, now: Option<Instant>) -> bool {
        table.standings.stamp.holds(&self.view, &self.sources.shared.epoch, now)
    }

    /// Makes a claim of an endpoint that is held for it by [`Table::claim`].
    #[inline]
    fn made_by_algorithm(&self, endpoint: Arc<Endpoint>, now: Option<Instant>) -> Claim {
        if self.is_ranked() { Claim::new(endpoint, None, true) } else { self.made(endpoint, now) }
    }

    fn made_of(&self, claimed: Claimed, now: Option<Instant>) -> Claim {
        let Claimed { endpoint, is_ranked } = claimed;
        if is_ranked { Claim::new(endpoint, None, true) } else { self.made(endpoint, now) }
    }

    /// Makes a claim of an endpoint that is held for it, and that no ranking has counted.
    #[inline]
    fn made(&self, endpoint: Arc<Endpoint>, now: Option<Instant>) -> Claim {
        let ranking = &self.sources.shared.ranking;
        let started = if self.algorithm == Algorithm::PeakEwma { now } else { None };
        let ranked = ranking.is_active() && ranking.enter(&endpoint);
        Claim::new(endpoint, started, ranked)
    }

    /// Whether claims are made through the ranking.
    #[inline]
    fn is_ranked(&self) -> bool {
        self.algorithm == Algorithm::LeastConnections && self.rules.candidates == Candidates::Normals
    }

    /// The table that all threads share, prepared anew if it does not hold. Threads wait for the one that prepares it: the table before may
    /// be as old as the last pick, and name only instances that left long ago.
    fn fetch(&self, now: Option<Instant>) -> Arc<Table> {
        if let Some(table) = self.table.load_full().filter(|table| self.holds(table, now)) {
            return table;
        }
        let _one = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        self.prepare(now)
    }

    /// To be called by the holder of `preparing`.
    fn prepare(&self, now: Option<Instant>) -> Arc<Table> {
        let old = self.table.load_full();
        if let Some(table) = old.as_ref().filter(|table| self.holds(table, now)) {
            return table.clone();
        }
        let now = now.unwrap_or_else(clock::now);
        let mut entries = self.endpoints.lock();
        let standings = Standings::draw_up(&self.view, &mut entries, &self.endpoints, self.rules, now);
        let table = Table::new(self.number, standings, self.algorithm, &self.sources);
        drop(entries);
        let table = Arc::new(table);
        self.table.store(Some(table.clone()));
        table
    }
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer")
            .field("service", &self.service())
            .field("algorithm", &self.inner.algorithm)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// How to choose. Default: round robin.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Lets chance come from this seed, so that the picks of one thread can be replayed. Default: each thread's own
    /// generator, seeded by the operating system.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Among which instances to choose. Default: [`Candidates::Normals`].
    pub fn candidates(mut self, candidates: Candidates) -> Self {
        self.rules.candidates = candidates;
        self
    }

    /// Whether the master takes the work where no normal instance can serve: none is registered, or all are drained, ejected, guarded,
    /// failing or excluded. Default: it does.
    pub fn fall_back_to_master(mut self, on: bool) -> Self {
        self.rules.fall_back_to_master = on;
        self
    }

    /// Lets an instance that joins start with a tenth of its weight, and reach it linearly in this time. Default: off, zero
    /// turns it off again. The instances of the first snapshot are warm. With round robin and random everybody has the
    /// weight 1. The hashes take no notice, because keys would move away and back.
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.rules.slow_start = Some(window).filter(|window| !window.is_zero());
        self
    }

    /// By what rule instances are ejected; `None` for never. Default: [`Ejection::default`]. Without effect where endpoints are
    /// shared: [`Endpoints::set_ejection`] says it for them.
    pub fn ejection(mut self, ejection: impl Into<Option<Ejection>>) -> Self {
        self.ejection = ejection.into();
        self
    }

    /// How many retries of [`Balancer::call`] are allowed for each 100 calls, besides ten a second. Default: 20.
    pub fn retry_budget(mut self, percent: u32) -> Self {
        self.retry_budget = percent;
        self
    }

    /// Shares the claims in flight, the latencies and the ejections with other balancers over the same service. Those that
    /// share should also agree on the slow start.
    pub fn endpoints(mut self, endpoints: Endpoints) -> Self {
        self.endpoints = Some(endpoints);
        self
    }

    /// The balancer.
    #[must_use]
    pub fn build(self) -> Balancer {
        let ejection = self.ejection;
        let endpoints = self.endpoints.unwrap_or_else(|| Endpoints::with_ejection(ejection));
        let inner = Inner {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            view: self.view,
            algorithm: self.algorithm,
            rules: self.rules,
            sources: Sources {
                turns: Turns::default(),
                rng: Rng::new(self.seed),
                shared: endpoints.shared().clone(),
                maglevs: Arc::default(),
            },
            endpoints,
            retry_budget: RetryBudget::new(self.retry_budget),
            table: ArcSwapOption::empty(),
            preparing: Mutex::new(()),
        };
        let balancer = Balancer { inner: Arc::new(inner) };
        // Who is there now is warm, also if the first pick comes only after the next snapshot.
        balancer.with_table(None, |_| {});
        balancer
    }
}
