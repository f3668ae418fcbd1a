//! What is prepared once, so that a pick is short.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use crate::algorithm::Algorithm;
use crate::alias::Alias;
use crate::chance::{Chance, below};
use crate::cycle::Cycle;
use crate::error::PickError;
use crate::maglev::{KeyHash, Maglev};
use crate::ranking::{Ranking, Runner};
use crate::roster::{Member, Roster};
use crate::seat::{Keep, Seat, Shared};
use crate::turn::Turn;

/// A roster made ready for one algorithm.
#[derive(Debug)]
pub(crate) struct Table {
    /// The balancer it was prepared for.
    pub(crate) owner: u64,
    pub(crate) roster: Roster,
    /// The candidates, in the order of their codes.
    pub(crate) seats: Box<[Keep]>,
    chooser: Result<Chooser, PickError>,
}

/// An algorithm with what it has prepared. It names candidates by their index.
#[derive(Debug)]
pub(crate) enum Chooser {
    Turns(Cycle),
    Chance,
    Alias(Alias),
    Hash(Hashed),
    Ranked,
    TwoChoices {
        /// 1 ÷ effective weight.
        pace: Box<[f64]>,
    },
}

/// What the hashes have prepared: a table over all that can take work, so that an ejection moves no other's keys.
#[derive(Debug)]
pub(crate) struct Hashed {
    maglev: Arc<Maglev>,
    /// (code, weight): while they are the same, so is the table.
    basis: Vec<(Arc<str>, u32)>,
    /// From the table's members to candidates; [`Hashed::AWAY`] for whom is drained or ejected.
    candidates: Box<[u32]>,
}

/// What choices depend on, and change, besides the table.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) turn: Turn,
    pub(crate) chance: Chance,
    pub(crate) shared: Arc<Shared>,
}

impl Sources {
    /// Copies from which the same choices follow for this thread, without any effect on these.
    pub(crate) fn peek(&self, owner: u64) -> Self {
        Self { turn: self.turn.peek(owner), chance: self.chance.peek(), shared: self.shared.clone() }
    }
}

/// What one pick brings along.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) owner: u64,
    pub(crate) key: &'a [u8],
    pub(crate) now: Option<Instant>,
}

impl Table {
    pub(crate) fn new(
        owner: u64,
        roster: Roster,
        algorithm: Algorithm,
        ranking: &Ranking,
        old: Option<&Table>,
    ) -> Self {
        let candidates: Vec<&Member> = roster.members.iter().filter(|member| member.is_candidate()).collect();
        let seats = candidates.iter().map(|member| member.seat.clone()).collect();
        if algorithm == Algorithm::LeastConnections {
            let runner = |member: &&Member| Runner { seat: member.seat.clone(), weight: member.weight() };
            ranking.set(candidates.iter().map(runner).collect());
        }
        let chooser = match roster.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(Chooser::new(algorithm, &roster, &candidates, old)),
        };
        Self { owner, roster, seats, chooser }
    }

    /// Chooses one and claims its seat. Why there is none, [`Table::refusal`] tells: here an `Option`, which fits into a
    /// register, saves the detour of a `Result` through memory.
    #[inline]
    pub(crate) fn claim(&self, from: &Sources, ask: Ask<'_>) -> Option<Arc<Seat>> {
        match &self.chooser {
            Ok(Chooser::Ranked) => from.shared.ranking.claim(),
            Ok(chooser) => Some(self.seats[chooser.choose(&self.seats, from, ask)].claim()),
            Err(_) => None,
        }
    }

    /// Chooses one that passes, and claims its seat. The algorithm's own choice comes first; where that does not pass,
    /// the hashes go on in their table, least connections and the two choices take the best of the rest, and the
    /// others go on in turn or by chance.
    pub(crate) fn claim_if(&self, from: &Sources, ask: Ask<'_>, passes: &dyn Fn(&Seat) -> bool) -> Option<Arc<Seat>> {
        let chooser = self.chooser.as_ref().ok()?;
        if let Chooser::Ranked = chooser {
            return from.shared.ranking.claim_if(passes);
        }
        let allowed: Vec<usize> = (0..self.seats.len()).filter(|&index| passes(&self.seats[index])).collect();
        chooser.choose_of(&allowed, &self.seats, from, ask).map(|index| self.seats[index].claim())
    }

    /// Whom [`Table::claim_if`] would choose, without claiming it.
    pub(crate) fn peek_if(&self, from: &Sources, ask: Ask<'_>, passes: &dyn Fn(&Seat) -> bool) -> Option<Arc<Seat>> {
        match &self.chooser {
            Ok(Chooser::Ranked) => from.shared.ranking.peek_if(passes),
            _ => self.claim_if(from, ask, passes),
        }
    }

    /// Why nobody was chosen.
    #[cold]
    pub(crate) fn refusal(&self) -> PickError {
        match &self.chooser {
            Err(refusal) => refusal.clone(),
            Ok(_) => self.exhausted(),
        }
    }

    fn exhausted(&self) -> PickError {
        PickError::AllExcluded { service: self.roster.snapshot.service().clone(), candidates: self.seats.len() }
    }
}

impl Member {
    pub(crate) fn is_candidate(&self) -> bool {
        self.able && self.standing == crate::roster::Standing::Candidate
    }

    /// Its effective weight: 1 and more, or a tenth of that while it warms up.
    pub(crate) fn weight(&self) -> f64 {
        f64::from(self.seat.instance.weight) * self.warmth
    }
}

impl Chooser {
    fn new(algorithm: Algorithm, roster: &Roster, candidates: &[&Member], old: Option<&Table>) -> Self {
        let weights = || candidates.iter().map(|member| member.weight());
        // While somebody warms up, the algorithms without weights weigh by warmth alone.
        let warmth = || candidates.iter().map(|member| member.warmth);
        match algorithm {
            Algorithm::RoundRobin if roster.warming => Chooser::Turns(Cycle::smooth(&whole(warmth(), true))),
            Algorithm::RoundRobin => Chooser::Turns(Cycle::smooth(&vec![1; candidates.len()])),
            Algorithm::WeightedRoundRobin => Chooser::Turns(Cycle::smooth(&whole(weights(), roster.warming))),
            Algorithm::Random if roster.warming => Chooser::Alias(Alias::new(&warmth().collect::<Vec<_>>())),
            Algorithm::Random => Chooser::Chance,
            Algorithm::WeightedRandom => Chooser::Alias(Alias::new(&weights().collect::<Vec<_>>())),
            Algorithm::IpHash | Algorithm::UrlHash => Chooser::Hash(Hashed::new(roster, old)),
            Algorithm::LeastConnections => Chooser::Ranked,
            Algorithm::PeakEwma => Chooser::TwoChoices { pace: weights().map(|weight| 1.0 / weight).collect() },
        }
    }

    #[inline]
    fn choose(&self, seats: &[Keep], from: &Sources, ask: Ask<'_>) -> usize {
        match self {
            Chooser::Turns(cycle) => cycle.at(from.turn.next(ask.owner)),
            Chooser::Chance => below(from.chance.next(), seats.len()),
            Chooser::Alias(alias) => alias.at(from.chance.next()),
            Chooser::Hash(hashed) => hashed.choose(ask.key),
            Chooser::TwoChoices { pace } => two_and_the_last(seats, pace, from, ask),
            // Claims through the ranking, which is not the table's.
            Chooser::Ranked => 0,
        }
    }

    fn choose_of(&self, allowed: &[usize], seats: &[Keep], from: &Sources, ask: Ask<'_>) -> Option<usize> {
        if allowed.len() == seats.len() {
            return Some(self.choose(seats, from, ask));
        }
        // Where there is no choice nobody's turn is used up: those who stay with an instance would skip others otherwise.
        if allowed.len() < 2 {
            return allowed.first().copied();
        }
        match self {
            Chooser::Turns(cycle) => {
                let turn = from.turn.next(ask.owner);
                cycle.from(turn).find(|index| allowed.contains(index))
            }
            Chooser::Hash(hashed) => hashed.choose_of(allowed, ask.key),
            Chooser::TwoChoices { pace } => cheapest(allowed, seats, pace, from, ask),
            Chooser::Alias(alias) => {
                // A few tries keep the weights; after them any will do.
                let tries = (0..16).map(|_| alias.at(from.chance.next())).find(|index| allowed.contains(index));
                tries.or_else(|| any(allowed, &from.chance))
            }
            Chooser::Chance | Chooser::Ranked => any(allowed, &from.chance),
        }
    }
}

fn any(allowed: &[usize], chance: &Chance) -> Option<usize> {
    if allowed.is_empty() { None } else { Some(allowed[below(chance.next(), allowed.len())]) }
}

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
fn two_and_the_last(seats: &[Keep], pace: &[f64], from: &Sources, ask: Ask<'_>) -> usize {
    let now = ask.now.unwrap_or_else(Instant::now);
    let cost = |index: usize| {
        let seat = &seats[index];
        seat.person.ewma.cost(seat.in_flight(), from.shared.ticks(now)) * pace[index]
    };
    let [a, b] = two(from.chance.next(), seats.len());
    let (cost_a, cost_b) = (cost(a), cost(b));
    let (winner, lowest) = if cost_b < cost_a { (b, cost_b) } else { (a, cost_a) };
    // It may be from a table before this one, and then names another instance: as good as one taken by chance.
    let last = from.turn.last() as usize;
    let cost_of_last = if last < seats.len() { cost(last) } else { f64::INFINITY };
    if lowest <= cost_of_last {
        if winner != last {
            from.turn.remember(winner as u64);
        }
        winner
    } else if lowest > cost_of_last * FAR_WORSE {
        last
    } else {
        winner
    }
}

/// The one with the lowest cost.
fn cheapest(allowed: &[usize], seats: &[Keep], pace: &[f64], from: &Sources, ask: Ask<'_>) -> Option<usize> {
    let ticks = from.shared.ticks(ask.now.unwrap_or_else(Instant::now));
    let cost = |index: &usize| seats[*index].person.ewma.cost(seats[*index].in_flight(), ticks) * pace[*index];
    allowed.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// Weights as whole numbers: as they are, or in hundredths while somebody warms up.
fn whole(weights: impl Iterator<Item = f64>, warming: bool) -> Vec<u64> {
    let scale = if warming { 100.0 } else { 1.0 };
    weights.map(|weight| ((weight * scale).round() as u64).max(1)).collect()
}

impl Hashed {
    const AWAY: u32 = u32::MAX;

    fn new(roster: &Roster, old: Option<&Table>) -> Self {
        let master = roster.snapshot.master().filter(|_| !roster.fell_back).map(|master| &master.code);
        let hashed = |member: &&Member| member.seat.instance.weight > 0 && Some(&member.seat.instance.code) != master;
        let members: Vec<&Member> = roster.members.iter().filter(hashed).collect();
        let basis: Vec<_> =
            members.iter().map(|member| (member.seat.instance.code.clone(), member.seat.instance.weight)).collect();
        let maglev = match old.map(|table| &table.chooser) {
            Some(Ok(Chooser::Hash(old))) if old.basis == basis => old.maglev.clone(),
            _ => Arc::new(Maglev::new(&basis.iter().map(|(code, weight)| (&**code, *weight)).collect::<Vec<_>>())),
        };
        let mut next = 0..;
        let number = |member: &&Member| if member.is_candidate() { next.next() } else { None };
        let candidates = members.iter().map(number).map(|index| index.unwrap_or(Self::AWAY)).collect();
        Self { maglev, basis, candidates }
    }

    #[inline]
    fn choose(&self, key: &[u8]) -> usize {
        let hash = KeyHash::of(key);
        match self.candidates[self.maglev.get(hash)] {
            Self::AWAY => self.elsewhere(hash, |_| true).unwrap_or(0),
            index => index as usize,
        }
    }

    fn choose_of(&self, allowed: &[usize], key: &[u8]) -> Option<usize> {
        self.elsewhere(KeyHash::of(key), |index| allowed.contains(&index))
    }

    /// The first candidate that will do at or after the key's place.
    #[cold]
    fn elsewhere(&self, hash: KeyHash, will_do: impl Fn(usize) -> bool) -> Option<usize> {
        let present = |member: usize| Some(self.candidates[member]).filter(|index| *index != Self::AWAY);
        self.maglev.probe(hash).filter_map(present).map(|index| index as usize).find(|index| will_do(*index))
    }
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
/// which is remembered if `fetch` says so.
#[inline]
pub(crate) fn with_last_used<T>(
    owner: u64,
    holds: impl Fn(&Table) -> bool,
    fetch: impl FnOnce() -> (Arc<Table>, bool),
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
fn fetch_and_remember(place: usize, fetch: impl FnOnce() -> (Arc<Table>, bool)) -> Arc<Table> {
    let (table, remember) = fetch();
    if remember {
        // Not while the thread is ending: then nothing is remembered any more. The old table is dropped outside.
        let _old = LAST_USED.try_with(|tables| {
            tables.try_borrow_mut().ok().and_then(|mut tables| tables[place].replace(Arc::clone(&table)))
        });
    }
    table
}
