//! What is prepared once, so that a pick is short.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::algorithm::Algorithm;
use crate::alias::Alias;
use crate::clock;
use crate::cycle::Cycle;
use crate::endpoint::{Endpoint, Keep, Shared};
use crate::error::PickError;
use crate::hashed::Hashed;
use crate::maglev::KeyHash;
use crate::maglev_builder::MaglevBuilder;
use crate::ranking::Runner;
use crate::rng::{Rng, below};
use crate::rules::{Candidates, Standing, Tier};
use crate::standings::{Member, Standings};
use crate::turns::Turns;

/// A standings made ready for one algorithm.
#[derive(Debug)]
pub(crate) struct Table {
    /// The balancer it was prepared for.
    pub(crate) owner: u64,
    pub(crate) standings: Standings,
    /// Those that are used, in the order of their codes.
    pub(crate) endpoints: Box<[Keep]>,
    chooser: Result<Chooser, PickError>,
}

/// An algorithm with what it has prepared. It names candidates by their index.
#[derive(Debug)]
pub(crate) enum Chooser {
    Cycle(Cycle),
    Random,
    Alias(Alias),
    Hash(Hashed),
    /// The best of the ranking, which all balancers over the normal instances of a service share.
    Ranked,
    /// The one with the least in flight, by looking at each.
    Least {
        weights: Box<[f64]>,
    },
    TwoChoices {
        /// 1 ÷ effective weight.
        pace: Box<[f64]>,
    },
}

/// What choices depend on, and change, besides the table.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) turns: Turns,
    pub(crate) rng: Rng,
    pub(crate) shared: Arc<Shared>,
    pub(crate) maglevs: Arc<MaglevBuilder>,
}

impl Sources {
    /// Copies from which the same choices follow for this thread, without any effect on these.
    pub(crate) fn peek(&self, owner: u64) -> Self {
        Self {
            turns: self.turns.peek(owner),
            rng: self.rng.peek(),
            shared: self.shared.clone(),
            maglevs: self.maglevs.clone(),
        }
    }
}

/// What one pick brings along.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) owner: u64,
    pub(crate) key: &'a [u8],
    pub(crate) now: Option<Instant>,
}

/// Whether an instance will do.
pub(crate) type Passes<'a> = &'a dyn Fn(&Endpoint) -> bool;

/// An endpoint that is held for a claim.
pub(crate) struct Claimed {
    pub(crate) endpoint: Arc<Endpoint>,
    /// It was claimed through the ranking, which has counted it.
    pub(crate) is_ranked: bool,
}

impl Claimed {
    fn ranked(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, is_ranked: true }
    }

    fn unranked(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, is_ranked: false }
    }
}

impl Table {
    pub(crate) fn new(owner: u64, standings: Standings, algorithm: Algorithm, from: &Sources) -> Self {
        let candidates: Vec<&Member> = standings.used().collect();
        let endpoints = candidates.iter().map(|member| member.endpoint.clone()).collect();
        if algorithm == Algorithm::LeastConnections && standings.candidates == Candidates::Normals {
            // The others too, so that claims on them are counted when they are used again.
            let runner = |member: &Member| {
                let is_used = member.tier.is_some() && member.tier == standings.tier;
                Runner { endpoint: member.endpoint.clone(), weight: if is_used { member.weight() } else { 0.0 } }
            };
            from.shared.ranking.set(standings.members.iter().map(runner).collect());
        }
        let chooser = match standings.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(Chooser::new(algorithm, &standings, &candidates, from)),
        };
        Self { owner, standings, endpoints, chooser }
    }

    /// Chooses one and claims its endpoint. Why there is none, [`Table::refusal`] tells: here an `Option`, which fits into a
    /// register, saves the detour of a `Result` through memory.
    #[inline]
    pub(crate) fn claim(&self, from: &Sources, ask: Ask<'_>) -> Option<Arc<Endpoint>> {
        match &self.chooser {
            Ok(Chooser::Ranked) => from.shared.ranking.claim(),
            Ok(chooser) => Some(self.endpoints[chooser.choose(&self.endpoints, from, ask)].claim()),
            Err(_) => None,
        }
    }

    /// Chooses one that passes, and claims its endpoint: of the first tier in which one passes, those whose last call has failed only
    /// where there is no other. Within the tier that is used the algorithm chooses among the rest: in turn, by chance, on the key's way through
    /// its table, the least loaded.
    ///
    /// Those that have no room keep their tier: it is better to wait for one of them than to use the next.
    pub(crate) fn claim_if(
        &self,
        from: &Sources,
        ask: Ask<'_>,
        passes: Passes<'_>,
        has_room: Passes<'_>,
    ) -> Result<Claimed, PickError> {
        let Some(tier) = self.tier_of(passes) else { return Err(self.refusal()) };
        let passes: Passes<'_> = &|endpoint| passes(endpoint) && has_room(endpoint);
        self.claim_in(tier, from, ask, passes).ok_or_else(|| self.no_room())
    }

    /// The first tier in which one passes.
    fn tier_of(&self, passes: Passes<'_>) -> Option<Tier> {
        if self.endpoints.iter().any(|endpoint| passes(endpoint)) {
            return self.standings.tier;
        }
        self.standings.members.iter().filter(|member| passes(&member.endpoint)).filter_map(|member| member.tier).min()
    }

    fn claim_in(&self, tier: Tier, from: &Sources, ask: Ask<'_>, passes: Passes<'_>) -> Option<Claimed> {
        let chooser = self.chooser.as_ref().ok()?;
        let passes_well: Passes<'_> = &|endpoint| !endpoint.stats.failures.is_failing() && passes(endpoint);
        if Some(tier) == self.standings.tier {
            let claim = |will_do: Passes<'_>| match chooser {
                Chooser::Ranked => from.shared.ranking.claim_if(will_do).map(Claimed::ranked),
                _ => {
                    let index = chooser.choose_if(will_do, &self.endpoints, from, ask)?;
                    Some(Claimed::unranked(self.endpoints[index].claim()))
                }
            };
            return claim(passes_well).or_else(|| claim(passes));
        }
        let in_tier = |will_do: Passes<'_>| -> Vec<(&Keep, f64)> {
            let members = self.standings.members.iter().filter(|member| member.tier == Some(tier));
            members
                .filter(|member| will_do(&member.endpoint))
                .map(|member| (&member.endpoint, member.weight()))
                .collect()
        };
        let well = in_tier(passes_well);
        let weighed = if well.is_empty() { in_tier(passes) } else { well };
        let index = match chooser {
            Chooser::Hash(_) => highest_random_weight(&weighed, ask.key),
            _ => least_in_flight(&weighed, from.turns.next(ask.owner)),
        };
        Some(Claimed::unranked(weighed.get(index?)?.0.claim()))
    }

    /// Claims the endpoint of the instance with this code, if it serves as well as any other, whatever its role.
    pub(crate) fn claim_code(&self, code: &str) -> Option<Arc<Endpoint>> {
        let member = self.standings.members.iter().find(|member| &*member.endpoint.instance.code == code)?;
        let may_be_kept = match self.standings.candidates {
            Candidates::Master => member.tier.is_some_and(Tier::may_be_kept),
            Candidates::Normals | Candidates::All => {
                let in_panic = member.tier == Some(Tier::FIRST);
                in_panic || matches!(member.standing, Standing::Passing | Standing::Unknown)
            }
        };
        may_be_kept.then(|| member.endpoint.claim())
    }

    /// The endpoint that [`Table::claim`] would choose, without claiming it.
    pub(crate) fn peek(&self, from: &Sources, ask: Ask<'_>) -> Option<Arc<Endpoint>> {
        match self.chooser.as_ref().ok()? {
            Chooser::Ranked => from.shared.ranking.peek_if(|_| true),
            chooser => Some(self.endpoints[chooser.choose(&self.endpoints, from, ask)].claim()),
        }
    }

    /// The endpoint that [`Table::claim_if`] would choose, without claiming it.
    pub(crate) fn peek_if(&self, from: &Sources, ask: Ask<'_>, passes: Passes<'_>) -> Option<Arc<Endpoint>> {
        let tier = self.tier_of(passes)?;
        if let Ok(Chooser::Ranked) = &self.chooser
            && Some(tier) == self.standings.tier
        {
            let is_well = |endpoint: &Endpoint| !endpoint.stats.failures.is_failing();
            let ranking = &from.shared.ranking;
            return ranking
                .peek_if(|endpoint| is_well(endpoint) && passes(endpoint))
                .or_else(|| ranking.peek_if(passes));
        }
        self.claim_in(tier, from, ask, passes).map(|claimed| claimed.endpoint)
    }

    /// Why none was chosen.
    #[cold]
    pub(crate) fn refusal(&self) -> PickError {
        match &self.chooser {
            Err(refusal) => refusal.clone(),
            Ok(_) => self.exhausted(),
        }
    }

    fn no_room(&self) -> PickError {
        PickError::NoRoom { service: self.standings.snapshot.service().clone() }
    }

    fn exhausted(&self) -> PickError {
        let candidates = self.standings.members.iter().filter(|member| member.tier.is_some()).count();
        PickError::AllExcluded { service: self.standings.snapshot.service().clone(), candidates }
    }
}

impl Member {
    /// Its effective weight: 1 and more, or a tenth of that while it warms up.
    pub(crate) fn weight(&self) -> f64 {
        f64::from(self.endpoint.instance.weight) * self.warmth
    }
}

impl Chooser {
    fn new(algorithm: Algorithm, standings: &Standings, candidates: &[&Member], from: &Sources) -> Self {
        let weights = || candidates.iter().map(|member| member.weight());
        // While somebody warms up, the algorithms without weights weigh by warmth alone.
        let warmth = || candidates.iter().map(|member| member.warmth);
        match algorithm {
            Algorithm::RoundRobin if standings.warming => Chooser::Cycle(Cycle::smooth(&whole(warmth(), true))),
            Algorithm::RoundRobin => Chooser::Cycle(Cycle::smooth(&vec![1; candidates.len()])),
            Algorithm::WeightedRoundRobin => Chooser::Cycle(Cycle::smooth(&whole(weights(), standings.warming))),
            Algorithm::Random if standings.warming => Chooser::Alias(Alias::new(&warmth().collect::<Vec<_>>())),
            Algorithm::Random => Chooser::Random,
            Algorithm::WeightedRandom => Chooser::Alias(Alias::new(&weights().collect::<Vec<_>>())),
            Algorithm::IpHash | Algorithm::UrlHash => Chooser::Hash(Hashed::new(standings, from)),
            Algorithm::LeastConnections if standings.candidates == Candidates::Normals => Chooser::Ranked,
            Algorithm::LeastConnections => Chooser::Least { weights: weights().collect() },
            Algorithm::PeakEwma => Chooser::TwoChoices { pace: weights().map(|weight| 1.0 / weight).collect() },
        }
    }

    #[inline]
    fn choose(&self, endpoints: &[Keep], from: &Sources, ask: Ask<'_>) -> usize {
        match self {
            Chooser::Cycle(cycle) => cycle.at(from.turns.next(ask.owner)),
            Chooser::Random => below(from.rng.next(), endpoints.len()),
            Chooser::Alias(alias) => alias.at(from.rng.next()),
            Chooser::Hash(hashed) => hashed.choose(ask.key),
            Chooser::TwoChoices { pace } => two_and_the_last(endpoints, pace, from, ask),
            Chooser::Least { weights } => {
                let weighed: Vec<(&Keep, f64)> = endpoints.iter().zip(weights.iter().copied()).collect();
                least_in_flight(&weighed, from.turns.next(ask.owner)).unwrap_or(0)
            }
            // Claims through the ranking, which is not the table's.
            Chooser::Ranked => 0,
        }
    }

    /// One of those that will do: O(1) as long as most do.
    fn choose_if(&self, will_do: Passes<'_>, endpoints: &[Keep], from: &Sources, ask: Ask<'_>) -> Option<usize> {
        let will_do = |index: &usize| will_do(&endpoints[*index]);
        let allowed = || (0..endpoints.len()).filter(will_do);
        // Where there is no choice nobody's turn is used up: those who stay with an instance would skip others otherwise.
        let mut first = allowed();
        let only = first.next()?;
        if first.next().is_none() {
            return Some(only);
        }
        match self {
            Chooser::Cycle(cycle) => cycle.from(from.turns.next(ask.owner)).find(will_do),
            // In the table are none of those that have joined since it was built.
            Chooser::Hash(hashed) => hashed.choose_if(|index| will_do(&index), ask.key).or_else(|| {
                let weighed: Vec<(&Keep, f64)> = allowed().map(|index| (&endpoints[index], 1.0)).collect();
                allowed().nth(highest_random_weight(&weighed, ask.key)?)
            }),
            Chooser::TwoChoices { pace } => {
                let mut pairs = (0..TRIES).map(|_| two(from.rng.next(), endpoints.len()));
                let pair = pairs.find(|pair| pair.iter().all(will_do));
                let now = ask.now.unwrap_or_else(clock::now);
                match pair {
                    Some(pair) => cheapest(pair.into_iter(), endpoints, pace, from, now),
                    None => cheapest(allowed(), endpoints, pace, from, now),
                }
            }
            Chooser::Least { weights } => {
                let (turn, n) = (from.turns.next(ask.owner), endpoints.len());
                let start = (turn % n as u64) as usize;
                let load = |index: &usize| endpoints[*index].in_flight() as f64 / weights[*index];
                (start..n).chain(0..start).filter(will_do).min_by(|a, b| load(a).total_cmp(&load(b)))
            }
            Chooser::Alias(alias) => {
                // A few tries keep the weights; after them any will do.
                let tried = (0..TRIES).map(|_| alias.at(from.rng.next())).find(will_do);
                tried.or_else(|| allowed().nth(below(from.rng.next(), allowed().count())))
            }
            Chooser::Random | Chooser::Ranked => {
                let tried = (0..TRIES).map(|_| below(from.rng.next(), endpoints.len())).find(will_do);
                tried.or_else(|| allowed().nth(below(from.rng.next(), allowed().count())))
            }
        }
    }
}

/// Number of random attempts before all instances are looked at.
const TRIES: usize = 16;

/// Two different indices, every pair in every order alike, or the only one twice.
#[inline]
fn two(bits: u64, n: usize) -> [usize; 2] {
    let first = below(bits, n);
    if n < 2 {
        return [first, first];
    }
    let second = below(bits << 32, n - 1);
    [first, if second >= first { second + 1 } else { second }]
}

/// How many times the last winner's cost the better of two must have for the last winner to be taken instead.
const FAR_WORSE: f64 = 2.0;

/// The better of two taken by chance; but if that is far worse than the last winner, which the turn remembers, then that one
/// (after Mitzenmacher, Prabhakar, Shah: "Load balancing with memory", FOCS 2002). With the two alone, two slow ones meet
/// now and then, 1 pick in 45 with ten instances, and one of them has to be taken; that alone would make the 99th
/// percentile theirs. And with the last winner always in the race, one of several equally good would have most of the calls.
fn two_and_the_last(endpoints: &[Keep], pace: &[f64], from: &Sources, ask: Ask<'_>) -> usize {
    let now = ask.now.unwrap_or_else(clock::now);
    let cost = |index: usize| {
        let endpoint = &endpoints[index];
        endpoint.stats.ewma.cost(endpoint.in_flight(), from.shared.ticks(now)) * pace[index]
    };
    let [a, b] = two(from.rng.next(), endpoints.len());
    let (cost_a, cost_b) = (cost(a), cost(b));
    let (winner, lowest) = if cost_b < cost_a { (b, cost_b) } else { (a, cost_a) };
    // It may be from a table before this one, and then names another instance: as good as one taken by chance.
    let last = from.turns.last() as usize;
    let cost_of_last = if last < endpoints.len() { cost(last) } else { f64::INFINITY };
    if lowest <= cost_of_last {
        if winner != last {
            from.turns.remember(winner as u64);
        }
        winner
    } else if lowest > cost_of_last * FAR_WORSE {
        last
    } else {
        winner
    }
}

/// The one with the lowest cost.
fn cheapest(
    allowed: impl Iterator<Item = usize>,
    endpoints: &[Keep],
    pace: &[f64],
    from: &Sources,
    now: Instant,
) -> Option<usize> {
    let ticks = from.shared.ticks(now);
    let cost = |index: &usize| endpoints[*index].stats.ewma.cost(endpoints[*index].in_flight(), ticks) * pace[*index];
    allowed.min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// The one with the fewest claims in flight in proportion to its weight; ties in turn.
fn least_in_flight(weighed: &[(&Keep, f64)], turn: u64) -> Option<usize> {
    let n = weighed.len();
    let start = if n == 0 { 0 } else { (turn % n as u64) as usize };
    let load = |index: &usize| weighed[*index].0.in_flight() as f64 / weighed[*index].1;
    (start..n).chain(0..start).min_by(|a, b| load(a).total_cmp(&load(b)))
}

/// The same one for the same key wherever it is asked, and few other keys move when one leaves (Thaler, Ravishankar: "Using name-based
/// mappings to increase hit rates", 1998).
fn highest_random_weight(weighed: &[(&Keep, f64)], key: &[u8]) -> Option<usize> {
    let hash = |index: &usize| xxh3_64_with_seed(weighed[*index].0.instance.code.as_bytes(), KeyHash::of(key).bits());
    (0..weighed.len()).max_by_key(hash)
}

/// Weights as whole numbers: as they are, or in hundredths while somebody warms up.
fn whole(weights: impl Iterator<Item = f64>, warming: bool) -> Vec<u64> {
    let scale = if warming { 100.0 } else { 1.0 };
    weights.map(|weight| ((weight * scale).round() as u64).max(1)).collect()
}

/// How many tables a thread remembers.
const REMEMBERED: usize = 8;

thread_local! {
    /// The tables that this thread has used last, by the number of their balancer. Reading one's own memory spares each pick
    /// the two atomic operations of a look into a shared `ArcSwap`, on which threads would also contend. The price: a
    /// thread keeps up to eight tables alive that may be outdated, until it picks again. They hold no claims.
    static LAST_USED: RefCell<[Option<Arc<Table>>; REMEMBERED]> = const { RefCell::new([const { None }; REMEMBERED]) };
}

/// Runs `with` on this thread's table of the balancer `owner` if there is one that `holds`; otherwise on what `fetch` gives,
/// which is remembered.
#[inline]
pub(crate) fn with_last_used<T>(
    owner: u64,
    holds: impl Fn(&Table) -> bool,
    fetch: impl FnOnce() -> Arc<Table>,
    with: impl Fn(&Table) -> T,
) -> T {
    let place = owner as usize % REMEMBERED;
    let remembered = LAST_USED.try_with(|tables| {
        let tables = tables.try_borrow().ok()?;
        let table = tables[place].as_deref()?;
        (table.owner == owner && holds(table)).then(|| with(table))
    });
    match remembered {
        Ok(Some(done)) => done,
        _ => with(&fetch_and_remember(place, fetch)),
    }
}

#[cold]
#[inline(never)]
fn fetch_and_remember(place: usize, fetch: impl FnOnce() -> Arc<Table>) -> Arc<Table> {
    let table = fetch();
    // Not while the thread is ending: then nothing is remembered any more. The old table is dropped outside.
    let _old = LAST_USED.try_with(|tables| {
        tables.try_borrow_mut().ok().and_then(|mut tables| tables[place].replace(Arc::clone(&table)))
    });
    table
}
