//! Who has the least in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::endpoint::{Endpoint, Keep};

/// Waits for the lock double from 2^5 to 2^9 spins, some 0.4 to 6 µs; then its holder is taken to be off the processor.
const FIRST_WAIT: u32 = 5;
const LAST_WAIT: u32 = 10;

/// Keeps the instances of a service ranked by claims in flight ÷ weight: exact, not sampled.
///
/// A tournament tree: each inner node names the better of its two children, so the root names the best, and a claim or a
/// release plays the log2(n) matches on the way up again. Both happen under one lock, for some ten nanoseconds; that is why
/// the lock is a plain mutex, and why nobody calls out while holding it.
///
/// Ties (an idle service is one great tie) go round in proportion to the weights, by start-time fair queueing (Goyal, Vin,
/// Cheng, SIGCOMM 1996): each claim moves an instance's tag on by 1 ÷ weight, the lowest tag wins, and a tag never lags
/// behind that of the last winner, so that nobody is flooded for having been busy for long.
#[derive(Debug, Default)]
pub(crate) struct Ranking {
    tree: Mutex<Tree>,
    /// Whether some balancer ranks. While none does, claims need not be entered.
    active: AtomicBool,
}

/// One of the instances to be ranked.
pub(crate) struct Runner {
    pub(crate) endpoint: Keep,
    /// 0 for one that is not to be claimed.
    pub(crate) weight: f64,
}

impl Ranking {
    /// The leaf of an instance that is not in the tree.
    pub(crate) const NOWHERE: u32 = u32::MAX;

    /// Whether claims have to be entered by [`Ranking::enter`].
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Ranks these instances from now on. Others stay in the tree, unranked, while claims on them are entered.
    pub(crate) fn set(&self, runners: Vec<Runner>) {
        self.active.store(true, Ordering::Relaxed);
        self.lock().set(runners);
    }

    /// Claims the best. `None` when nobody is ranked.
    pub(crate) fn claim(&self) -> Option<Arc<Endpoint>> {
        let mut tree = self.lock();
        let leaf = tree.best()?;
        Some(tree.claim(leaf))
    }

    /// Claims the best of those whose endpoint passes: O(log n) for each better one that does not.
    pub(crate) fn claim_if(&self, passes: impl Fn(&Endpoint) -> bool) -> Option<Arc<Endpoint>> {
        let mut tree = self.lock();
        let leaf = tree.best_if(passes)?;
        Some(tree.claim(leaf))
    }

    /// Returns the endpoint that [`Ranking::claim_if`] would claim.
    pub(crate) fn peek_if(&self, passes: impl Fn(&Endpoint) -> bool) -> Option<Arc<Endpoint>> {
        let tree = self.lock();
        let leaf = tree.best_if(passes)?;
        Some(Arc::clone(&tree.runners[leaf].endpoint))
    }

    /// Enters a claim that was made otherwise. Says whether it has to be left by [`Ranking::leave`].
    pub(crate) fn enter(&self, endpoint: &Endpoint) -> bool {
        let mut tree = self.lock();
        let leaf = endpoint.stats.leaf.load(Ordering::Relaxed);
        let known = leaf != Self::NOWHERE;
        if known {
            tree.count(leaf as usize, 1);
        }
        known
    }

    /// Takes out a claim that was entered.
    pub(crate) fn leave(&self, endpoint: &Endpoint) {
        let mut tree = self.lock();
        let leaf = endpoint.stats.leaf.load(Ordering::Relaxed);
        if leaf != Self::NOWHERE {
            tree.count(leaf as usize, -1);
        }
    }

    /// Lets go of all endpoints: they hold what holds the ranking.
    pub(crate) fn clear(&self) {
        let tree = std::mem::take(&mut *self.lock());
        for entry in &tree.runners {
            entry.endpoint.stats.leaf.store(Self::NOWHERE, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tree> {
        // It is held for so short a time that waiting for it awake is cheaper than being woken.
        for round in FIRST_WAIT..LAST_WAIT {
            if let Ok(tree) = self.tree.try_lock() {
                return tree;
            }
            // Longer each time: whoever has the lock and its cache lines had better do several turns than be asked for them.
            for _ in 0..1 << round {
                std::hint::spin_loop();
            }
        }
        // Nothing in here panics half-way; and a count that is off would be better than a balancer that is dead.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Tree {
    /// `winners[1]` is the root's, `winners[i]` the better of `winners[2i]` and `winners[2i + 1]`; the second half is the
    /// leaves, each its own winner.
    winners: Vec<u32>,
    /// One per leaf, apart from [`Tree::runners`] so that a match touches little memory.
    keys: Vec<Key>,
    runners: Vec<Entry>,
    /// The tag of the last winner.
    clock: f64,
}

/// Lower is better: claims in flight ÷ weight (infinite for whom is not to be picked), then the tag. Both are held as the
/// bits of an `f64`, which for numbers that are not negative are in the same order as the numbers, so that a match is one
/// comparison of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u128);

impl Key {
    const NOBODY: Self = Self::new(f64::INFINITY, f64::INFINITY);

    const fn new(load: f64, tag: f64) -> Self {
        Self((load.to_bits() as u128) << 64 | tag.to_bits() as u128)
    }

    fn load(self) -> f64 {
        f64::from_bits((self.0 >> 64) as u64)
    }

    fn tag(self) -> f64 {
        f64::from_bits(self.0 as u64)
    }
}

#[derive(Debug)]
struct Entry {
    endpoint: Keep,
    /// 1 ÷ weight; infinite for whom is not to be picked.
    pace: f64,
    count: i64,
}

impl Tree {
    fn set(&mut self, runners: Vec<Runner>) {
        let old = std::mem::take(&mut self.runners);
        let old_keys = std::mem::take(&mut self.keys);
        for entry in &old {
            entry.endpoint.stats.leaf.store(Ranking::NOWHERE, Ordering::Relaxed);
        }
        for runner in runners {
            self.push(Entry { endpoint: runner.endpoint, pace: 1.0 / runner.weight, count: 0 }, self.clock);
        }
        for (entry, key) in old.into_iter().zip(old_keys) {
            let leaf = entry.endpoint.stats.leaf.load(Ordering::Relaxed) as usize;
            if let Some(again) = self.runners.get_mut(leaf) {
                again.count = entry.count;
                self.keys[leaf] = Key::new(again.load(), key.tag().min(self.clock + again.pace));
            } else if entry.count != 0 {
                self.push(Entry { pace: f64::INFINITY, ..entry }, key.tag());
            }
        }
        let leaves = self.runners.len().next_power_of_two();
        self.keys.resize(leaves, Key::NOBODY);
        self.winners = (0..2 * leaves).map(|node| node.saturating_sub(leaves) as u32).collect();
        for node in (1..leaves).rev() {
            let (left, right) = (self.winners[2 * node], self.winners[2 * node + 1]);
            let right_wins = self.keys[right as usize] < self.keys[left as usize];
            self.winners[node] = if right_wins { right } else { left };
        }
    }

    fn push(&mut self, entry: Entry, tag: f64) {
        entry.endpoint.stats.leaf.store(self.runners.len() as u32, Ordering::Relaxed);
        self.keys.push(Key::new(entry.load(), tag));
        self.runners.push(entry);
    }

    fn best(&self) -> Option<usize> {
        let leaf = *self.winners.get(1)? as usize;
        self.is_ranked(leaf).then_some(leaf)
    }

    fn best_if(&self, passes: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        self.best_under(1, &passes)
    }

    /// The best below a node: its winner, or the better of what is left on both sides.
    fn best_under(&self, node: usize, passes: &impl Fn(&Endpoint) -> bool) -> Option<usize> {
        let winner = *self.winners.get(node)? as usize;
        if !self.is_ranked(winner) {
            return None;
        }
        if passes(&self.runners[winner].endpoint) {
            return Some(winner);
        }
        if node >= self.winners.len() / 2 {
            return None;
        }
        let sides = [self.best_under(2 * node, passes), self.best_under(2 * node + 1, passes)];
        sides.into_iter().flatten().min_by_key(|leaf| self.keys[*leaf])
    }

    fn is_ranked(&self, leaf: usize) -> bool {
        self.keys[leaf].load() < f64::INFINITY
    }

    fn claim(&mut self, leaf: usize) -> Arc<Endpoint> {
        let tag = self.keys[leaf].tag().max(self.clock);
        self.clock = tag;
        let entry = &mut self.runners[leaf];
        entry.count += 1;
        let key = Key::new(entry.load(), tag + entry.pace);
        let endpoint = entry.endpoint.claim();
        self.play(leaf, key);
        endpoint
    }

    fn count(&mut self, leaf: usize, by: i64) {
        let entry = &mut self.runners[leaf];
        entry.count += by;
        let key = Key::new(entry.load(), self.keys[leaf].tag());
        self.play(leaf, key);
    }

    /// Gives a leaf a new key and plays its matches anew, up to the first that it lost before and loses again: above it
    /// nothing changes.
    fn play(&mut self, leaf: usize, key: Key) {
        self.keys[leaf] = key;
        let mut node = self.winners.len() / 2 + leaf;
        let (mut winner, mut best) = (leaf as u32, key);
        while node > 1 {
            let rival = self.winners[node ^ 1];
            let rivals = self.keys[rival as usize];
            // Without a branch: who wins a match is as good as chance.
            let loses = (rivals < best) | ((rivals == best) & (rival < winner));
            winner = if loses { rival } else { winner };
            best = if loses { rivals } else { best };
            node /= 2;
            if winner != leaf as u32 && self.winners[node] == winner {
                return;
            }
            self.winners[node] = winner;
        }
    }
}

impl Entry {
    #[inline]
    fn load(&self) -> f64 {
        // 0 × infinity is not a number; whom nobody may pick is infinitely loaded.
        if self.pace.is_finite() { self.count as f64 * self.pace } else { f64::INFINITY }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::{Instance, ObservedInstance};
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::EndpointStats;
    use crate::endpoints::Endpoints;

    proptest! {
        #[test]
        fn the_best_of_those_that_pass_is_found_without_a_look_at_all(
            weights in proptest::collection::vec(0_u32..4, 1..40),
            picks in 0_usize..60,
            passing in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let endpoints = Endpoints::new();
            let runner = |(number, weight): (usize, &u32)| {
                let instance = Arc::new(ObservedInstance::from(Instance::with_code("s", format!("{number:02}"))));
                let stats = Arc::new(EndpointStats::new(endpoints.shared().clone()));
                Runner { endpoint: Endpoint::first(instance, stats), weight: f64::from(*weight) }
            };
            let ranking = Ranking::default();
            ranking.set(weights.iter().enumerate().map(runner).collect());
            for _ in 0..picks {
                ranking.claim();
            }
            let passes = |endpoint: &Endpoint| passing[endpoint.instance.code.parse::<usize>().unwrap()];
            let tree = ranking.lock();
            let allowed = |leaf: &usize| tree.is_ranked(*leaf) && passes(&tree.runners[*leaf].endpoint);
            let by_looking_at_all = (0..tree.runners.len()).filter(allowed).min_by_key(|leaf| tree.keys[*leaf]);
            prop_assert_eq!(tree.best_if(passes), by_looking_at_all);
        }
    }
}
