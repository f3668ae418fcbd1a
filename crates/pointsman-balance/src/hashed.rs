//! The hashes: which candidate a key belongs to.

use std::sync::Arc;

use crate::maglev::{KeyHash, SMALL_UP_TO};
use crate::maglev_builder::{Built, Members};
use crate::rules::{Candidates, Tier};
use crate::standings::{Member, Standings};
use crate::table::Sources;

/// Prepared state of the hashes: a table over all instances that may ever be used, so that no other keys move when one is not used now.
#[derive(Debug)]
pub(crate) struct Hashed {
    table: Arc<Built>,
    /// From the table's members to candidates; [`Hashed::AWAY`] for those that are not used now.
    candidates: Box<[u32]>,
}

impl Hashed {
    const AWAY: u32 = u32::MAX;

    /// Over a table of these standings. Of more than [`SMALL_UP_TO`] instances it may be the one before, for as long as the next is being
    /// built: then those that are gone are passed over, and those that have joined have no keys yet.
    pub(crate) fn new(standings: &Standings, from: &Sources) -> Self {
        let stands_in = standings.tier.is_some_and(Tier::stands_in);
        let is_in_role = |member: &Member| match standings.candidates {
            Candidates::Normals => member.is_master == stands_in,
            Candidates::Master => member.is_master,
            Candidates::All => true,
        };
        let hashed = |member: &&Member| member.endpoint.instance.weight > 0 && is_in_role(member);
        let members: Vec<&Member> = standings.members.iter().filter(hashed).collect();
        let of = |members: &[&Member]| -> Members {
            let instances = members.iter().map(|member| &member.endpoint.instance);
            instances.map(|instance| (instance.code.clone(), instance.weight)).collect()
        };
        let used: Vec<&Arc<str>> = standings.used().map(|member| &member.endpoint.instance.code).collect();
        let Some(newest) = from.maglevs.newest() else { return Self::over(from.maglevs.build(of(&members)), &used).0 };
        if is_over(&newest, &members) {
            from.maglevs.cancel();
            return Self::over(newest, &used).0;
        }
        if members.len() > SMALL_UP_TO {
            let (hashed, found) = Self::over(newest, &used);
            // With fewer, too many keys would be served by too few.
            if found >= used.len().div_ceil(2) {
                from.maglevs.order(of(&members), &from.shared);
                return hashed;
            }
        }
        Self::over(from.maglevs.build(of(&members)), &used).0
    }

    /// Over a table, with those that are used, in the order of their codes; and how many of them the table knows.
    fn over(table: Arc<Built>, used: &[&Arc<str>]) -> (Self, usize) {
        let (mut next, mut found) = (0, 0);
        let mut candidate = |code: &Arc<str>| {
            while used.get(next).is_some_and(|used| !Arc::ptr_eq(used, code) && **used < *code) {
                next += 1;
            }
            if used.get(next).is_none_or(|used| !is_same(used, code)) {
                return Self::AWAY;
            }
            (next, found) = (next + 1, found + 1);
            u32::try_from(next - 1).unwrap_or(Self::AWAY)
        };
        let candidates = table.members.iter().map(|(code, _)| candidate(code)).collect();
        (Self { table, candidates }, found)
    }

    #[inline]
    pub(crate) fn choose(&self, key: &[u8]) -> usize {
        let hash = KeyHash::of(key);
        match self.candidates[self.table.maglev.get(hash)] {
            Self::AWAY => self.elsewhere(hash, |_| true).unwrap_or(0),
            index => index as usize,
        }
    }

    pub(crate) fn choose_if(&self, will_do: impl Fn(usize) -> bool, key: &[u8]) -> Option<usize> {
        self.elsewhere(KeyHash::of(key), will_do)
    }

    /// The first candidate that will do at or after the key's place.
    #[cold]
    fn elsewhere(&self, hash: KeyHash, will_do: impl Fn(usize) -> bool) -> Option<usize> {
        let present = |member: usize| Some(self.candidates[member]).filter(|index| *index != Self::AWAY);
        self.table.maglev.probe(hash).filter_map(present).map(|index| index as usize).find(|index| will_do(*index))
    }
}

/// Whether the table is over these members.
fn is_over(table: &Built, members: &[&Member]) -> bool {
    let is_of = |member: &Member, (code, weight): &(Arc<str>, u32)| {
        let instance = &member.endpoint.instance;
        instance.weight == *weight && is_same(&instance.code, code)
    };
    table.members.len() == members.len() && members.iter().zip(&*table.members).all(|(member, of)| is_of(member, of))
}

fn is_same(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use pointsman_core::{Instance, ObservedInstance, Snapshot, ViewWriter};

    use super::*;
    use crate::maglev::Maglev;
    use crate::{Algorithm, Balancer};

    /// A service of instances known by number, with their weights, and a balancer over it.
    struct Fleet {
        writer: ViewWriter,
        weights: BTreeMap<usize, u32>,
        balancer: Balancer,
    }

    const MANY: usize = SMALL_UP_TO + 200;

    fn code(number: usize) -> String {
        format!("code-{number:05}")
    }

    fn keys() -> impl Iterator<Item = [u8; 4]> {
        (0..300_u32).map(u32::to_le_bytes)
    }

    impl Fleet {
        fn of(count: usize) -> Self {
            let weights: BTreeMap<usize, u32> = (0..count).map(|number| (number, 1)).collect();
            let writer = ViewWriter::new(snapshot(1, &weights));
            let balancer = Balancer::new(writer.view(), Algorithm::UrlHash);
            Self { writer, weights, balancer }
        }

        fn change(&mut self, change: impl FnOnce(&mut BTreeMap<usize, u32>)) {
            change(&mut self.weights);
            let revision = self.writer.load().revision() + 1;
            self.writer.store(Arc::new(snapshot(revision, &self.weights)));
        }

        fn picks(&self) -> Vec<String> {
            keys().map(|key| self.balancer.pick(key).unwrap().code().to_string()).collect()
        }

        /// The picks by a table over the instances as they are now.
        fn right(&self) -> Vec<String> {
            let working = self.weights.iter().filter(|(_, weight)| **weight > 0);
            let codes: Vec<(String, u32)> = working.map(|(number, weight)| (code(*number), *weight)).collect();
            let members: Vec<(&str, u32)> = codes.iter().map(|(code, weight)| (&**code, *weight)).collect();
            let maglev = Maglev::new(&members);
            keys().map(|key| codes[maglev.get(KeyHash::of(&key))].0.clone()).collect()
        }

        fn works(&self, picked: &str) -> bool {
            self.weights.iter().any(|(number, weight)| *weight > 0 && code(*number) == picked)
        }

        /// Waits until the table has followed the last change.
        fn settle(&self) {
            let (deadline, right) = (Instant::now() + Duration::from_secs(30), self.right());
            while self.picks() != right {
                assert!(Instant::now() < deadline, "the table follows within 30 s");
                std::thread::yield_now();
            }
        }
    }

    fn snapshot(revision: u64, weights: &BTreeMap<usize, u32>) -> Snapshot {
        let instance = |(number, weight): (&usize, &u32)| {
            let instance = Instance::with_code("s", code(*number)).address("127.0.0.1:80").weight(*weight);
            Arc::new(ObservedInstance::from(instance))
        };
        Snapshot::new("s", revision, weights.iter().map(instance).collect())
    }

    /// Asserts that, until the table has followed a change, only the keys of instances that are gone move, and to instances that are there.
    fn assert_only_theirs_move(fleet: &Fleet, before: &[String], after: &[String]) {
        for (before, after) in before.iter().zip(after) {
            assert!(if fleet.works(before) { before == after } else { fleet.works(after) }, "{before}, {after}");
        }
    }

    fn change_some(weights: &mut BTreeMap<usize, u32>) {
        weights.retain(|number, _| number % 10 != 0);
        weights.insert(3, 0);
        weights.insert(5, 7);
        weights.extend((0..100).map(|number| (MANY + number, 1)));
    }

    #[test]
    fn among_many_only_the_keys_of_those_that_are_gone_move_at_once() {
        let mut fleet = Fleet::of(MANY);
        let (balancer, before) = (fleet.balancer.clone(), fleet.picks());
        let sources = balancer.sources();
        assert_eq!(before, fleet.right());
        sources.maglevs.hold();
        fleet.change(change_some);
        assert_only_theirs_move(&fleet, &before, &fleet.picks());
        sources.maglevs.go_on(&sources.shared);
        assert_eq!(fleet.picks(), fleet.right());
    }

    #[test]
    fn what_a_table_is_built_for_may_be_outdated_when_it_is_ready() {
        let mut fleet = Fleet::of(MANY);
        let (balancer, before) = (fleet.balancer.clone(), fleet.picks());
        let sources = balancer.sources();
        sources.maglevs.hold();
        fleet.change(change_some);
        fleet.picks();
        // As before: the table that was ordered is not wanted any more.
        fleet.change(|weights| *weights = (0..MANY).map(|number| (number, 1)).collect());
        assert_eq!(fleet.picks(), before);
        sources.maglevs.go_on(&sources.shared);
        assert_eq!(fleet.picks(), before);
        fleet.change(change_some);
        fleet.picks();
        // So few that the table is built at once, whatever has been ordered.
        fleet.change(|weights| weights.retain(|number, _| *number < 10));
        assert_eq!(fleet.picks(), fleet.right());
        sources.maglevs.go_on(&sources.shared);
        assert_eq!(fleet.picks(), fleet.right());
    }

    #[test]
    fn those_who_have_joined_since_are_used_where_nobody_else_can_be() {
        let mut fleet = Fleet::of(MANY);
        fleet.balancer.sources().maglevs.hold();
        fleet.change(change_some);
        let old: Vec<String> = (0..MANY).map(code).collect();
        let picked = fleet.balancer.pick_excluding("key", &old).unwrap();
        assert!(fleet.works(picked.code()) && !old.contains(&picked.code().to_string()));
    }

    #[test]
    fn a_fleet_that_is_replaced_has_its_table_at_once() {
        let mut fleet = Fleet::of(MANY);
        fleet.balancer.sources().maglevs.hold();
        fleet.change(|weights| {
            weights.retain(|number, _| number % 3 == 0);
            weights.extend((0..MANY).map(|number| (MANY + number, 1)));
        });
        assert_eq!(fleet.picks(), fleet.right());
    }

    #[test]
    fn among_few_every_key_follows_at_once() {
        let mut fleet = Fleet::of(300);
        fleet.change(|weights| {
            weights.retain(|number, _| number % 10 != 0);
            weights.insert(5, 7);
        });
        assert_eq!(fleet.picks(), fleet.right());
    }

    #[test]
    fn the_thread_follows_and_ends_when_nothing_is_left_to_build() {
        let mut fleet = Fleet::of(MANY);
        for number in 0..20 {
            fleet.change(|weights| weights.retain(|other, _| *other != number * 7));
            fleet.picks();
        }
        fleet.settle();
        let (maglevs, deadline) = (fleet.balancer.sources().maglevs.clone(), Instant::now() + Duration::from_secs(30));
        while maglevs.is_building() {
            assert!(Instant::now() < deadline, "the thread ends within 30 s");
            std::thread::yield_now();
        }
        fleet.change(change_some);
        fleet.picks();
        fleet.settle();
    }
}
