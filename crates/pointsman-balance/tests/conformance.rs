//! What every algorithm has to keep, and what each promises.

// The lint's exception for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use pointsman_balance::{Algorithm, Balancer, Endpoints, Outcome, PickError, Standing, Tier};
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Status, Term, View, ViewWriter};
use proptest::prelude::*;

fn normal(code: &str, weight: u32) -> ObservedInstance {
    let mut instance = ObservedInstance::from(Instance::new("s").code(code).address("127.0.0.1:1").weight(weight));
    instance.role = Role::Normal;
    instance
}

fn master(code: &str) -> ObservedInstance {
    let mut instance = normal(code, 1);
    instance.role = Role::Master(Term(1));
    instance
}

fn snapshot(instances: impl IntoIterator<Item = ObservedInstance>) -> Snapshot {
    Snapshot::new("s", 1, instances.into_iter().map(Arc::new).collect())
}

fn weighted(weights: &[u32]) -> Snapshot {
    snapshot(weights.iter().enumerate().map(|(index, weight)| normal(&format!("code-{index:03}"), *weight)))
}

fn seeded(snapshot: Snapshot, algorithm: Algorithm) -> Balancer {
    Balancer::builder(View::fixed(snapshot)).algorithm(algorithm).seed(7).build()
}

fn code_of(balancer: &Balancer, key: &str) -> String {
    balancer.pick(key).unwrap().code().to_string()
}

/// Picks, with a key of its own each, answers after a millisecond, and lets go.
fn counts(balancer: &Balancer, picks: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let now = Instant::now();
    for pick in 0..picks {
        let claim = balancer.pick_at(format!("/path/{pick}"), now).unwrap();
        claim.report_at(Outcome::Success, now + Duration::from_millis(1));
        *counts.entry(claim.code().to_string()).or_insert(0) += 1;
    }
    counts
}

fn assert_near(count: usize, expected: f64, what: &str) {
    let tolerance = 6.0 * expected.sqrt() + expected * 0.06;
    assert!((count as f64 - expected).abs() <= tolerance, "{what}: {count} instead of {expected}");
}

#[test]
fn nobody_there_is_an_error_and_not_an_empty_record() {
    for algorithm in Algorithm::ALL {
        let error = seeded(Snapshot::empty("s"), algorithm).pick("/x").unwrap_err();
        assert_eq!(error, PickError::NoInstance { service: "s".into() }, "{algorithm}");
        assert!(error.to_string().contains("none is registered"));
    }
}

#[test]
fn weights_of_zero_and_drained_instances_get_nothing_and_panic_nobody() {
    for algorithm in Algorithm::ALL {
        let mut drained = normal("d", 3);
        drained.status = Status::Drained;
        let none = seeded(snapshot([normal("a", 0), normal("b", 0), drained.clone()]), algorithm);
        assert_eq!(none.pick("").unwrap_err(), PickError::AllDrained { service: "s".into(), instances: 3 });
        let one = seeded(snapshot([normal("a", 0), normal("b", 2), drained]), algorithm);
        assert_eq!(counts(&one, 50), BTreeMap::from([("b".to_owned(), 50)]), "{algorithm}");
    }
}

#[test]
fn the_master_stands_in_only_where_no_normal_can_work() {
    for algorithm in Algorithm::ALL {
        let both = seeded(snapshot([master("m"), normal("n", 1)]), algorithm);
        assert_eq!(counts(&both, 20), BTreeMap::from([("n".to_owned(), 20)]), "{algorithm}");
        let drained = seeded(snapshot([master("m"), normal("n", 0)]), algorithm);
        assert_eq!(counts(&drained, 20), BTreeMap::from([("m".to_owned(), 20)]), "{algorithm}");
        let view = View::fixed(snapshot([master("m")]));
        let strict = Balancer::builder(view).algorithm(algorithm).fall_back_to_master(false).build();
        assert_eq!(strict.pick("").unwrap_err(), PickError::OnlyMaster { service: "s".into() });
    }
}

#[test]
fn no_equal_server_starves_or_is_flooded() {
    for algorithm in Algorithm::ALL {
        for n in [1, 2, 3, 10] {
            let counts = counts(&seeded(weighted(&vec![1; n]), algorithm), 1500 * n);
            assert_eq!(counts.len(), n, "{algorithm}");
            for count in counts.values() {
                assert_near(*count, 1500.0, algorithm.name());
            }
        }
    }
}

#[test]
fn each_claim_counts_until_it_is_dropped_whatever_happens() {
    for algorithm in Algorithm::ALL {
        let balancer = seeded(weighted(&[1, 2, 3]), algorithm);
        let total = || balancer.in_flight().iter().map(|(_, count)| count).sum::<usize>();
        let claims: Vec<_> = (0..30).map(|i| balancer.pick(format!("{i}")).unwrap()).collect();
        assert_eq!(total(), 30, "{algorithm}");
        let mut held: HashMap<Arc<str>, usize> = HashMap::new();
        for claim in &claims {
            *held.entry(claim.code().clone()).or_default() += 1;
            claim.report(&Ok::<(), ()>(()));
        }
        for (code, count) in balancer.in_flight() {
            assert_eq!(held.get(&code).copied().unwrap_or(0), count, "{algorithm}");
        }
        let panicked = std::thread::spawn(move || {
            let _claims = claims;
            panic!("a call that panics (part of the test)");
        });
        assert!(panicked.join().is_err());
        assert_eq!(total(), 0, "{algorithm}");
    }
}

#[test]
fn claims_survive_changes_of_the_snapshot() {
    for algorithm in Algorithm::ALL {
        let mut writer = ViewWriter::new(weighted(&[1, 1]));
        let balancer = Balancer::builder(writer.view()).algorithm(algorithm).seed(1).build();
        let held: Vec<_> = (0..10).map(|i| balancer.pick(format!("{i}")).unwrap()).collect();
        let on_first = held.iter().filter(|claim| &**claim.code() == "code-000").count();
        let in_flight = || balancer.endpoints().in_flight("code-000");
        assert_eq!(in_flight(), on_first);
        for weights in [&[5, 1][..], &[5, 1, 1], &[0, 2], &[]] {
            writer.store(Arc::new(weighted(weights)));
            let _ = balancer.pick("x").map(drop);
            assert_eq!(in_flight(), on_first, "{algorithm} {weights:?}");
        }
        writer.store(Arc::new(weighted(&[3, 3])));
        assert_eq!(code_of(&balancer, "x").len(), 8);
        assert_eq!(in_flight(), on_first, "{algorithm}: left and returned");
        drop(held);
        assert_eq!(balancer.in_flight().iter().map(|(_, count)| count).sum::<usize>(), 0, "{algorithm}");
        writer.store(Arc::new(weighted(&[])));
        assert!(balancer.in_flight().is_empty(), "{algorithm}: who is gone is forgotten");
    }
}

#[test]
fn a_retry_goes_elsewhere() {
    for algorithm in Algorithm::ALL {
        let balancer = seeded(weighted(&[1, 2, 3]), algorithm);
        for i in 0..50 {
            let key = format!("{i}");
            let first = balancer.pick(&key).unwrap();
            let second = balancer.pick_excluding(&key, &[first.code()]).unwrap();
            let third = balancer.pick_excluding(&key, &[first.code(), second.code()]).unwrap();
            let mut codes = [first.code(), second.code(), third.code()];
            codes.sort();
            assert_eq!(codes.map(|code| &**code), ["code-000", "code-001", "code-002"], "{algorithm}");
            let error = balancer.pick_excluding(&key, &codes).unwrap_err();
            assert_eq!(error, PickError::AllExcluded { service: "s".into(), candidates: 3 }, "{algorithm}");
        }
        assert_eq!(balancer.in_flight().iter().map(|(_, count)| count).sum::<usize>(), 0);
    }
}

#[test]
fn what_is_explained_is_what_is_picked_and_nothing_is_disturbed() {
    for algorithm in Algorithm::ALL {
        let mut drained = normal("drained", 1);
        drained.status = Status::Drained;
        let all = [normal("a", 1), normal("b", 5), normal("z", 0), drained, master("m")];
        let balancer = seeded(snapshot(all), algorithm);
        let start = Instant::now();
        for i in 0..40 {
            let key = format!("{i}");
            let now = start + Duration::from_millis(i);
            let explained = balancer.explain_at(&key, now);
            assert_eq!(explained.chosen, balancer.explain_at(&key, now).chosen);
            let claim = balancer.pick_at(&key, now).unwrap();
            assert_eq!(explained.chosen.as_ref().unwrap(), claim.code(), "{algorithm}");
        }
        let explained = balancer.explain_excluding_at("k", &["a"], Instant::now());
        let standings: Vec<_> = explained.instances.iter().map(|one| (one.standing, one.excluded)).collect();
        let passing = |excluded| (Standing::Passing, excluded);
        let expected =
            [passing(true), passing(false), (Standing::Drained, false), passing(false), (Standing::Weightless, false)];
        assert_eq!(standings, expected);
        let tiers: Vec<_> = explained.instances.iter().map(|one| one.tier.map(Tier::number)).collect();
        assert_eq!(tiers, [Some(1), Some(1), None, Some(2), None]);
        let text = explained.to_string();
        for part in ["excluded", "tier 1: ", "drained", "master", "weight 0", "chosen: b", algorithm.name()] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(balancer.in_flight().iter().all(|(_, count)| *count == 0));
    }
    let text = seeded(Snapshot::empty("s"), Algorithm::Random).explain("").to_string();
    assert!(text.contains("none: pick an instance of s: none is registered"), "{text}");
}

#[test]
fn a_seed_is_replayed() {
    for algorithm in Algorithm::ALL {
        let run = || {
            let balancer = seeded(weighted(&[1, 2, 3, 4]), algorithm);
            let mut held = Vec::new();
            let now = Instant::now();
            for i in 0..200 {
                let claim = balancer.pick_at(format!("{i}"), now + Duration::from_millis(i)).unwrap();
                held.push(claim);
                if i % 3 == 0 {
                    held.remove(0).report_at(Outcome::Success, now + Duration::from_millis(i + 5));
                }
            }
            held.iter().map(|claim| claim.code().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(run(), run(), "{algorithm}");
    }
}

/// All ask at the same time, and for the first time after a change, as clients do on a route that nobody has used for a while. The
/// algorithm is one that takes long to prepare.
#[test]
fn no_thread_picks_from_the_list_before_a_change() {
    const THREADS: usize = 4;
    let of_round = |round| snapshot([normal(&format!("i{round}"), 1)]);
    let mut writer = ViewWriter::new(of_round(0));
    let balancer = Balancer::new(writer.view(), Algorithm::UrlHash);
    for round in 1..50 {
        writer.store(Arc::new(of_round(round)));
        let barrier = Barrier::new(THREADS);
        let pick = || {
            barrier.wait();
            code_of(&balancer, "key")
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(pick)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), format!("i{round}"));
            }
        });
    }
}

#[test]
fn threads_that_pick_while_the_service_changes_leave_nothing_in_flight() {
    for algorithm in Algorithm::ALL {
        let mut writer = ViewWriter::new(weighted(&[1; 5]));
        let endpoints = Endpoints::new();
        let balancer = Balancer::builder(writer.view()).algorithm(algorithm).endpoints(endpoints.clone()).build();
        let other = Balancer::builder(writer.view()).endpoints(endpoints.clone()).build();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (balancer, other) = (balancer.clone(), other.clone());
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for i in 0..5_000 {
                        let balancer = if (i + thread) % 4 == 0 { &other } else { &balancer };
                        let claim = balancer.pick(format!("{i}")).unwrap();
                        claim.report(if i % 50 == 0 { Outcome::Failure } else { Outcome::Success });
                        held.push(claim);
                        if i % 7 == 0 {
                            held.clear();
                        }
                    }
                });
            }
            for i in 0..200 {
                let weights: Vec<u32> = (0..5 + i % 3).map(|k| 1 + (i + k) % 4).collect();
                writer.store(Arc::new(weighted(&weights)));
                std::thread::yield_now();
            }
        });
        assert!(endpoints.all_in_flight().iter().all(|(_, count)| *count == 0), "{algorithm}: {endpoints:?}");
        if algorithm == Algorithm::LeastConnections {
            // The ranking has not lost count either: what is idle is equal.
            assert!(counts(&balancer, 700).len() >= 5);
        }
    }
}

#[test]
fn keyless_picks_spread_with_the_hashes_too() {
    let balancer = seeded(weighted(&[1; 4]), Algorithm::UrlHash);
    let codes: std::collections::HashSet<_> =
        (0..100).map(|_| balancer.pick_any().unwrap().code().to_string()).collect();
    assert_eq!(codes.len(), 4);
}

#[test]
fn least_connections_counts_what_is_in_flight_and_not_what_was_picked() {
    let balancer = seeded(weighted(&[1, 1, 1]), Algorithm::LeastConnections);
    let busy: Vec<_> = (0..2).map(|_| balancer.pick("").unwrap()).collect();
    let free = ["code-000", "code-001", "code-002"].into_iter().find(|c| busy.iter().all(|b| &**b.code() != *c));
    for _ in 0..10 {
        assert_eq!(code_of(&balancer, ""), free.unwrap());
    }
    drop(busy);
    let counts = counts(&balancer, 30);
    assert!(counts.values().all(|count| (9..=11).contains(count)), "released: {counts:?}");
}

#[test]
fn least_connections_does_not_flood_one_after_a_change() {
    let mut writer = ViewWriter::new(weighted(&[1; 4]));
    let balancer = Balancer::new(writer.view(), Algorithm::LeastConnections);
    let held: Vec<_> = (0..40).map(|_| balancer.pick("").unwrap()).collect();
    writer.store(Arc::new(weighted(&[1; 5])));
    let more: Vec<_> = (0..60).map(|_| balancer.pick("").unwrap()).collect();
    // The newcomer catches up to the same load, and not beyond.
    assert!(balancer.in_flight().iter().all(|(_, count)| *count == 20), "{:?}", balancer.in_flight());
    drop((held, more));
    let counts = counts(&balancer, 500);
    assert!(counts.values().all(|count| (99..=101).contains(count)), "{counts:?}");
}

#[test]
fn least_connections_sees_what_other_balancers_have_in_flight() {
    let (view, endpoints) = (View::fixed(weighted(&[1, 1])), Endpoints::new());
    let least =
        Balancer::builder(view.clone()).algorithm(Algorithm::LeastConnections).endpoints(endpoints.clone()).build();
    let by_url = Balancer::builder(view).algorithm(Algorithm::UrlHash).endpoints(endpoints.clone()).build();
    let held: Vec<_> = (0..10).map(|_| by_url.pick("/hot").unwrap()).collect();
    let more: Vec<_> = (0..10).map(|_| least.pick("").unwrap()).collect();
    assert!(more.iter().all(|claim| claim.code() != held[0].code()));
    assert_eq!(endpoints.all_in_flight().iter().map(|(_, count)| *count).collect::<Vec<_>>(), [10, 10]);
    drop(held);
    assert_ne!(least.pick("").unwrap().code(), more[0].code());
    drop((least, by_url, endpoints));
    drop(more);
}

#[test]
fn hashes_agree_among_processes_whatever_the_order_of_reading() {
    for algorithm in [Algorithm::IpHash, Algorithm::UrlHash] {
        let instances: Vec<_> = (0..20).map(|i| normal(&format!("c{i}"), 1 + i % 3)).collect();
        let (a, b) = (snapshot(instances.clone()), snapshot(instances.into_iter().rev()));
        let (a, b) = (seeded(a, algorithm), Balancer::new(View::fixed(b), algorithm));
        for key in 0..500 {
            let key = format!("10.0.0.{key}");
            assert_eq!(code_of(&a, &key), code_of(&b, &key));
        }
    }
}

#[test]
fn hashes_move_only_the_keys_of_whom_is_drained_and_give_them_back() {
    let mut writer = ViewWriter::new(weighted(&[1; 10]));
    let balancer = Balancer::new(writer.view(), Algorithm::UrlHash);
    let keys: Vec<_> = (0..2000).map(|i| format!("/{i}")).collect();
    let before: Vec<_> = keys.iter().map(|key| code_of(&balancer, key)).collect();
    let mut instances: Vec<_> = (0..10).map(|i| normal(&format!("code-{i:03}"), 1)).collect();
    instances[4].status = Status::Drained;
    writer.store(Arc::new(snapshot(instances)));
    let mut heirs = std::collections::HashSet::new();
    for (key, before) in keys.iter().zip(&before) {
        let now = code_of(&balancer, key);
        if before == "code-004" {
            heirs.insert(now);
        } else {
            assert_eq!(&now, before);
        }
    }
    assert_eq!(heirs.len(), 9, "the keys spread over all others");
    writer.store(Arc::new(weighted(&[1; 10])));
    assert!(keys.iter().zip(&before).all(|(key, before)| code_of(&balancer, key) == *before));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn weights_are_honoured(weights in prop::collection::vec(0u32..8, 1..12)) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        for algorithm in [
            Algorithm::WeightedRoundRobin,
            Algorithm::WeightedRandom,
            Algorithm::IpHash,
            Algorithm::UrlHash,
            Algorithm::LeastConnections,
        ] {
            let counts = counts(&seeded(weighted(&weights), algorithm), 3000);
            for (index, weight) in weights.iter().enumerate() {
                let count = counts.get(&format!("code-{index:03}")).copied().unwrap_or(0);
                assert_near(count, 3000.0 * f64::from(*weight) / f64::from(total), algorithm.name());
            }
        }
    }

    #[test]
    fn claims_held_by_least_connections_follow_the_weights(weights in prop::collection::vec(1u32..8, 1..12)) {
        let balancer = seeded(weighted(&weights), Algorithm::LeastConnections);
        let total: u32 = weights.iter().sum();
        let _held: Vec<_> = (0..total * 10).map(|_| balancer.pick("").unwrap()).collect();
        for ((_, count), weight) in balancer.in_flight().iter().zip(&weights) {
            prop_assert_eq!(*count as u32, weight * 10);
        }
    }

    #[test]
    fn round_robin_is_exact(n in 1usize..40, rounds in 1usize..5) {
        let counts = counts(&seeded(weighted(&vec![3; n]), Algorithm::RoundRobin), n * rounds);
        prop_assert!(counts.len() == n && counts.values().all(|count| *count == rounds));
    }

    #[test]
    fn one_that_leaves_moves_about_its_own_share_of_keys(n in 2usize..20, gone in 0usize..20) {
        let weights = vec![1; n];
        let all: Vec<_> = (0..n).map(|index| normal(&format!("code-{index:03}"), weights[index])).collect();
        let mut rest = all.clone();
        rest.remove(gone % n);
        let (before, after) = (seeded(snapshot(all), Algorithm::IpHash), seeded(snapshot(rest), Algorithm::IpHash));
        let keys = 2000;
        let moved = (0..keys).filter(|key| {
            let key = format!("10.0.{}.{}", key / 256, key % 256);
            code_of(&before, &key) != code_of(&after, &key)
        });
        prop_assert!((moved.count() as f64) < 2000.0 * (1.0 / n as f64 + 0.06));
    }

    #[test]
    fn nothing_panics(
        weights in prop::collection::vec(prop_oneof![Just(0u32), Just(1), 0u32..1_000_001], 0..6),
        has_master in any::<bool>(),
        key in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for algorithm in Algorithm::ALL {
            let mut instances: Vec<_> =
                weights.iter().enumerate().map(|(index, weight)| normal(&format!("{index}"), *weight)).collect();
            instances.extend(has_master.then(|| master("m")));
            let balancer = seeded(snapshot(instances), algorithm);
            let possible = has_master || weights.iter().any(|weight| *weight > 0);
            prop_assert_eq!(balancer.pick(&key).is_ok(), possible);
            prop_assert_eq!(balancer.explain(&key).chosen.is_ok(), possible);
        }
    }
}

#[test]
fn a_code_that_is_asked_for_is_claimed_whatever_its_role_if_it_takes_work() {
    for algorithm in Algorithm::ALL {
        let balancer = seeded(snapshot([master("m"), normal("a", 1), normal("b", 0), normal("c", 3)]), algorithm);
        let claim = balancer.pick_code("a").unwrap();
        assert_eq!((&**claim.code(), balancer.in_flight()[0].1), ("a", 1), "{algorithm}");
        // So a client that stays with an instance stays when that is promoted.
        assert_eq!(&**balancer.pick_code("m").unwrap().code(), "m", "{algorithm}");
        for other in ["b", "x"] {
            assert!(balancer.pick_code(other).is_none(), "{algorithm} {other}");
        }
    }
}

#[test]
fn asking_for_a_code_takes_nobodys_turn() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::WeightedRoundRobin] {
        let balancer = seeded(snapshot([normal("a", 1), normal("b", 1)]), algorithm);
        let mut picks: Vec<_> = (0..4)
            .map(|_| {
                assert!(balancer.pick_code("x").is_none());
                balancer.pick("").unwrap().code().to_string()
            })
            .collect();
        picks.sort();
        assert_eq!(picks, ["a", "a", "b", "b"], "{algorithm}");
    }
}
