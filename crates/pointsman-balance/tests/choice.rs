//! The one ordered choice: every combination of what can be known of the instances of a service, for each role and algorithm, against the
//! table of `docs/choosing.md`, which is read here; and random lives of a service, in which nobody who is known to be dead is asked while
//! somebody lives.

// The lint's exception for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};

use pointsman_balance::{Algorithm, Balancer, Candidates, Ejection, Endpoints, Outcome, PickError};
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Status, Term, View, ViewWriter};
use pointsman_testkit::choosing::{Asked, ChoosingTable, Known as Is, combinations};
use proptest::prelude::*;

const CODES: [&str; 3] = ["m", "n1", "n2"];

fn instance(code: &str) -> ObservedInstance {
    let mut instance = ObservedInstance::from(Instance::new("s").code(code).address(format!("{code}:1")));
    instance.role = if code == "m" { Role::Master(Term(1)) } else { Role::Normal };
    instance
}

/// A service in which each instance is as it is told, and a balancer over it.
struct World {
    endpoints: Endpoints,
    view: View,
    excluded: Vec<&'static str>,
    /// With the time at which all of it holds.
    now: Instant,
}

impl World {
    fn new(states: [Is; 3]) -> Self {
        let mut rule = Ejection::default();
        (rule.max_percent, rule.panic_percent) = (100, 0);
        let endpoints = Endpoints::with_ejection(Some(rule));
        endpoints.set_checked(true);
        let now = Instant::now();
        let states = CODES.into_iter().zip(states);
        let there = || states.clone().filter(|(_, is)| *is != Is::Absent);
        let mut writer =
            ViewWriter::new(Snapshot::new("s", 1, there().map(|(code, _)| instance(code).into()).collect()));
        let view = writer.view();
        let any = Balancer::builder(view.clone()).candidates(Candidates::All).endpoints(endpoints.clone()).build();
        let fail = |code: &str, times| {
            let others: Vec<&str> = CODES.into_iter().filter(|other| *other != code).collect();
            for _ in 0..times {
                any.pick_excluding("", &others).unwrap().report_at(Outcome::Failure, now);
            }
        };
        for (code, is) in there() {
            if is != Is::Unchecked {
                endpoints.set_check(&code.into(), Some(&format!("{code}:1").into()), is != Is::Failing);
            }
            if is == Is::Ejected {
                fail(code, 5);
            }
        }
        let after = there().map(|(code, is)| {
            let mut instance = instance(code);
            match is {
                Is::Guarded | Is::GuardedFailed => instance.guarded_since = Some(SystemTime::UNIX_EPOCH),
                Is::Drained => instance.status = Status::Drained,
                Is::Weightless => instance.weight = 0,
                _ => {}
            }
            Arc::new(instance)
        });
        writer.store(Arc::new(Snapshot::new("s", 2, after.collect())));
        there().filter(|(_, is)| *is == Is::GuardedFailed).for_each(|(code, _)| fail(code, 1));
        let excluded = there().filter(|(_, is)| *is == Is::Excluded).map(|(code, _)| code).collect();
        Self { endpoints, view, excluded, now }
    }

    fn balancer(&self, algorithm: Algorithm, candidates: Candidates, falls_back: bool) -> Balancer {
        let builder = Balancer::builder(self.view.clone()).algorithm(algorithm).candidates(candidates);
        builder.fall_back_to_master(falls_back).endpoints(self.endpoints.clone()).seed(7).build()
    }
}

#[test]
fn every_combination_is_decided_by_the_table() {
    let table = ChoosingTable::read();
    let choices = [
        (Asked::Normal, Candidates::Normals, true),
        (Asked::NormalOnly, Candidates::Normals, false),
        (Asked::Master, Candidates::Master, true),
        (Asked::All, Candidates::All, true),
    ];
    for (number, states) in combinations(&Is::ALL, &Is::ALL).into_iter().enumerate() {
        let world = World::new(states);
        let is_of_the_hashes = (number / 100 + number / 10 + number).is_multiple_of(10);
        for (asked, candidates, falls_back) in choices {
            let of_states: Vec<_> = CODES.into_iter().zip(states).collect();
            let (expected, tier) = table.expected(asked, &of_states);
            // The tables of the hashes are large: these see every combination of two instances, not of three.
            let algorithms = Algorithm::ALL.into_iter().filter(|one| !one.uses_key() || is_of_the_hashes);
            for algorithm in algorithms {
                let balancer = world.balancer(algorithm, candidates, falls_back);
                let what = || format!("{states:?} {candidates:?} {falls_back} {algorithm}: {expected:?}");
                let explained = balancer.explain_excluding_at("k", &world.excluded, world.now);
                let picked: BTreeSet<String> = (0..16)
                    .filter_map(|key: u32| balancer.pick_excluding(key.to_le_bytes(), &world.excluded).ok())
                    .map(|claim| claim.code().to_string())
                    .collect();
                assert!(picked.iter().all(|code| expected.contains(&**code)), "{}, not {picked:?}", what());
                assert_eq!(picked.is_empty(), expected.is_empty(), "{}", what());
                assert_eq!(explained.chosen.is_ok(), !expected.is_empty(), "{}\n{explained}", what());
                assert_eq!(explained.tier.map(pointsman_balance::Tier::number), tier, "{}\n{explained}", what());
            }
        }
    }
}

#[test]
fn a_refusal_says_what_is_the_matter() {
    let service: Arc<str> = "s".into();
    let refusal = |states, candidates, falls_back| {
        World::new(states).balancer(Algorithm::RoundRobin, candidates, falls_back).pick("").unwrap_err()
    };
    let (normals, master) = (Candidates::Normals, Candidates::Master);
    let (none, drained, passing) = (Is::Absent, Is::Drained, Is::Passing);
    let no_instance = PickError::NoInstance { service: service.clone() };
    assert_eq!(refusal([none; 3], normals, true), no_instance);
    assert_eq!(refusal([none; 3], master, true), no_instance);
    assert_eq!(refusal([drained; 3], normals, true), PickError::AllDrained { service: service.clone(), instances: 3 });
    assert_eq!(refusal([passing, drained, none], normals, false), PickError::OnlyMaster { service: service.clone() });
    let is_drained = refusal([drained, passing, passing], master, true);
    assert!(matches!(is_drained, PickError::MasterDrained { since: Some(_), .. }), "a moment ago it was not");
    let no_master = PickError::NoMaster { service: service.clone(), since: None };
    assert_eq!(refusal([none, passing, passing], master, true), no_master);
    let given_up = refusal([Is::GuardedFailed, passing, passing], master, true);
    assert!(matches!(given_up, PickError::NoMaster { since: Some(_), .. }), "{given_up:?}");
}

#[test]
fn a_master_that_has_gone_is_told_from_one_that_never_was() {
    let start = Instant::now();
    let mut writer = ViewWriter::new(Snapshot::new("s", 1, vec![instance("n1").into()]));
    let balancer = Balancer::builder(writer.view()).candidates(Candidates::Master).build();
    let refused = |at| match balancer.pick_at("", at) {
        Err(PickError::NoMaster { since, .. }) => since,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(start), None);
    writer.store(Arc::new(Snapshot::new("s", 2, vec![instance("m").into(), instance("n1").into()])));
    let claim = balancer.pick_at("", start).unwrap();
    assert_eq!((&**claim.code(), balancer.in_flight()), ("m", vec![("m".into(), 1), ("n1".into(), 0)]));
    writer.store(Arc::new(Snapshot::new("s", 3, vec![instance("n1").into()])));
    let later = start + Duration::from_secs(5);
    assert_eq!(refused(later), Some(later));
    writer.store(Arc::new(Snapshot::new("s", 4, vec![instance("n1").into(), instance("n2").into()])));
    assert_eq!(refused(later + Duration::from_secs(1)), Some(later), "since it was first found");
}

/// As for the first request on a route, when the mastership is being handed on.
#[test]
fn a_master_that_has_gone_is_known_even_if_nothing_was_picked_while_it_was_there() {
    let mut writer = ViewWriter::new(Snapshot::new("s", 1, Vec::new()));
    let balancer = Balancer::builder(writer.view()).candidates(Candidates::Master).build();
    writer.store(Arc::new(Snapshot::new("s", 2, vec![instance("m").into(), instance("n1").into()])));
    writer.store(Arc::new(Snapshot::new("s", 3, vec![instance("n1").into()])));
    let awaits = |balancer: &Balancer, after: Duration| {
        let now = Instant::now() + after;
        balancer.pick_at("", now).unwrap_err().awaits_master(Duration::from_secs(1), now)
    };
    assert!(awaits(&balancer, Duration::ZERO));
    // Also by a balancer that comes later, as after a reload.
    let second = Balancer::builder(writer.view()).candidates(Candidates::Master).build();
    assert!(awaits(&second, Duration::ZERO));
    // Not for ever, whoever joins.
    writer.store(Arc::new(Snapshot::new("s", 4, vec![instance("n1").into(), instance("n2").into()])));
    assert!(!awaits(&balancer, Duration::from_secs(5)));
}

#[test]
fn one_dead_normal_beside_a_healthy_master_is_not_asked_for_long() {
    for algorithm in Algorithm::ALL {
        let view = View::fixed(Snapshot::new("s", 1, vec![instance("m").into(), instance("n1").into()]));
        let balancer = Balancer::new(view, algorithm);
        let failed = (0..50)
            .filter(|_| {
                let claim = balancer.pick("k").unwrap();
                let is_dead = &**claim.code() == "n1";
                claim.report(if is_dead { Outcome::Failure } else { Outcome::Success });
                is_dead
            })
            .count();
        assert_eq!(failed, 5, "{algorithm}: as many as eject it, and then the master stands in");
        let again = balancer.pick_excluding("k", &["n1"]).unwrap();
        assert_eq!(&**again.code(), "m", "{algorithm}: and at once for one who has tried it");
    }
}

#[test]
fn those_that_are_full_are_waited_for_and_no_lower_tier_is_used() {
    for algorithm in Algorithm::ALL {
        let all = ["m", "n1", "n2"].map(|code| instance(code).into()).to_vec();
        let balancer = Balancer::new(View::fixed(Snapshot::new("s", 1, all)), algorithm);
        let none: [&str; 0] = [];
        let picked = |tried: &[&str], full: &[&str]| {
            balancer.pick_with_room("k", tried, full).map(|claim| claim.code().to_string())
        };
        assert_eq!(picked(&none, &["n1"]), Ok("n2".to_owned()), "{algorithm}");
        let no_room = Err(PickError::NoRoom { service: "s".into() });
        assert_eq!(picked(&none, &["n1", "n2"]), no_room, "{algorithm}");
        assert_eq!(picked(&["n1"], &["n2"]), no_room, "{algorithm}");
        assert_eq!(picked(&["n1", "n2"], &["n1"]), Ok("m".to_owned()), "{algorithm}");
        assert_eq!(picked(&["n1", "n2"], &["m"]), no_room, "{algorithm}");
    }
}

#[test]
fn the_address_is_part_of_who_an_instance_is() {
    let now = Instant::now();
    let at = |address: &str| {
        let mut moved = instance("n1");
        moved.registered.address = Some(address.into());
        Snapshot::new("s", 1, vec![moved.into(), instance("n2").into()])
    };
    let mut writer = ViewWriter::new(at("old:1"));
    let balancer = Balancer::builder(writer.view())
        .algorithm(Algorithm::LeastConnections)
        .slow_start(Duration::from_secs(100))
        .build();
    let held: Vec<_> = (0..10).map(|_| balancer.pick_excluding("", &["n2"]).unwrap()).collect();
    held.iter().take(5).for_each(|claim| claim.report_at(Outcome::Failure, now));
    assert_eq!(&**balancer.pick_at("", now).unwrap().code(), "n2", "ejected");
    writer.store(Arc::new(at("new:1")));
    let explained = balancer.explain_at("", now);
    let moved = &explained.instances[0];
    assert_eq!((moved.tier.map(pointsman_balance::Tier::number), moved.in_flight), (Some(1), 0), "{explained}");
    assert!(moved.weight < 0.2, "it starts slowly: {explained}");
    drop(held);
    assert_eq!(balancer.endpoints().in_flight("n1"), 0);
}

#[test]
fn what_is_known_outlives_a_change_of_the_rules() {
    let now = Instant::now();
    let view = View::fixed(Snapshot::new("s", 1, ["n1", "n2", "n3", "n4"].map(|code| instance(code).into()).to_vec()));
    let balancer = Balancer::new(view, Algorithm::RoundRobin);
    let endpoints = balancer.endpoints();
    let standing = |code: &str| {
        let explained = balancer.explain_at("", now);
        explained.instances.iter().find(|one| &*one.instance.code == code).unwrap().tier.unwrap().number()
    };
    for _ in 0..5 {
        balancer.pick_excluding("", &["n2", "n3", "n4"]).unwrap().report_at(Outcome::Failure, now);
    }
    assert_eq!(standing("n1"), 5);
    let mut rule = Ejection::default();
    rule.consecutive_failures = 2;
    endpoints.set_ejection(Some(rule));
    assert_eq!(standing("n1"), 5, "still ejected");
    endpoints.set_checked(true);
    endpoints.set_check(&"n2".into(), Some(&"n2:1".into()), false);
    endpoints.set_check(&"n3".into(), Some(&"n3:1".into()), true);
    assert_eq!((standing("n2"), standing("n3"), standing("n4")), (9, 1, 3));
    endpoints.set_check(&"n2".into(), Some(&"other:1".into()), true);
    assert_eq!(standing("n2"), 3, "a result for another address is another instance's");
    endpoints.set_checked(true);
    assert_eq!(standing("n3"), 1, "said twice, nothing is forgotten");
    endpoints.set_ejection(None);
    assert_eq!(standing("n1"), 3, "ejection is off: nobody is out");
}

/// What happens to an instance in a random life.
#[derive(Debug, Clone, Copy)]
enum Event {
    Join,
    Leave,
    Die,
    /// The registry has lost it, though it lives.
    Expire,
    Reconnect,
    /// The registry has noticed that dead ones are gone; of several at once they are guarded.
    Notice {
        guards: bool,
    },
    CheckAll,
    Drain,
    Undrain,
    Promote,
    Call,
    Wait,
}

fn events() -> impl Strategy<Value = Vec<(Event, usize)>> {
    let event = prop_oneof![
        3 => Just(Event::Join),
        1 => Just(Event::Leave),
        2 => Just(Event::Die),
        1 => Just(Event::Expire),
        1 => Just(Event::Reconnect),
        2 => any::<bool>().prop_map(|guards| Event::Notice { guards }),
        1 => Just(Event::CheckAll),
        1 => Just(Event::Drain),
        1 => Just(Event::Undrain),
        1 => Just(Event::Promote),
        12 => Just(Event::Call),
        1 => Just(Event::Wait),
    ];
    prop::collection::vec((event, 0usize..64), 1..120)
}

#[derive(Debug, Clone, Default)]
struct Life {
    code: String,
    is_alive: bool,
    is_registered: bool,
    is_guarded: bool,
    is_drained: bool,
    is_master: bool,
    /// Calls that it has been given since it died.
    asked_since: usize,
}

impl Life {
    fn serves(&self) -> bool {
        self.is_alive && self.is_registered && !self.is_drained
    }
}

struct Lives {
    lives: Vec<Life>,
    joined: usize,
    writer: ViewWriter,
    revision: u64,
    endpoints: Endpoints,
    checked: bool,
    now: Instant,
}

impl Lives {
    fn publish(&mut self) {
        self.revision += 1;
        let revision = self.revision;
        let shown = self.lives.iter().filter(|life| life.is_registered || life.is_guarded).map(|life| {
            let mut instance =
                ObservedInstance::from(Instance::new("s").code(life.code.clone()).address(format!("{}:1", life.code)));
            let is_master = life.is_master && life.is_registered;
            instance.role = if is_master { Role::Master(Term(revision)) } else { Role::Normal };
            instance.guarded_since = (!life.is_registered).then_some(SystemTime::UNIX_EPOCH);
            instance.status = if life.is_drained { Status::Drained } else { Status::Passing };
            Arc::new(instance)
        });
        self.writer.store(Arc::new(Snapshot::new("s", revision, shown.collect())));
    }

    fn happen(&mut self, event: Event, which: usize) {
        let n = self.lives.len();
        match (event, n) {
            (Event::Join, 0..10) => {
                self.joined += 1;
                let is_master = self.lives.iter().all(|life| !life.is_master || !life.is_registered);
                let code = format!("i{}", self.joined);
                self.lives.push(Life { code, is_alive: true, is_registered: true, is_master, ..Life::default() });
            }
            (Event::Wait, _) => self.now += Duration::from_secs(which as u64),
            (_, 0) => {}
            (Event::Leave, _) => drop(self.lives.remove(which % n)),
            (Event::Die, _) => self.lives[which % n].is_alive = false,
            (Event::Expire, _) => {
                let life = &mut self.lives[which % n];
                (life.is_registered, life.is_guarded, life.is_master) = (false, true, false);
            }
            (Event::Reconnect, _) => {
                for life in self.lives.iter_mut().filter(|life| life.is_alive && !life.is_registered) {
                    (life.is_registered, life.is_guarded) = (true, false);
                }
            }
            (Event::Notice { guards }, _) => {
                self.lives.retain(|life| life.is_alive || (guards && life.is_registered));
                for life in self.lives.iter_mut().filter(|life| !life.is_alive) {
                    (life.is_registered, life.is_guarded, life.is_master) = (false, true, false);
                }
            }
            (Event::CheckAll, _) if self.checked => {
                for life in &self.lives {
                    self.endpoints.set_check(
                        &(*life.code).into(),
                        Some(&format!("{}:1", life.code).into()),
                        life.is_alive,
                    );
                }
            }
            (Event::Drain, _) => self.lives[which % n].is_drained = true,
            (Event::Undrain, _) => self.lives[which % n].is_drained = false,
            (Event::Promote, _) if self.lives[which % n].is_registered => {
                self.lives.iter_mut().for_each(|life| life.is_master = false);
                self.lives[which % n].is_master = true;
            }
            _ => {}
        }
        self.publish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// As long as an instance lives and is registered, a call finds one that lives, by no more attempts than there are instances that have
    /// died unnoticed; none that is drained is asked; and none that is known to be dead comes before one that lives.
    #[test]
    fn a_call_finds_one_that_lives(
        events in events(),
        algorithm in prop::sample::select(Algorithm::ALL.to_vec()),
        checked in any::<bool>(),
    ) {
        let endpoints = Endpoints::new();
        endpoints.set_checked(checked);
        let writer = ViewWriter::new(Snapshot::empty("s"));
        let view = writer.view();
        let balancer = Balancer::builder(view).algorithm(algorithm).endpoints(endpoints.clone()).build();
        let mut lives =
            Lives { lives: Vec::new(), joined: 0, writer, revision: 1, endpoints, checked, now: Instant::now() };
        for (event, which) in events {
            lives.happen(event, which);
            if !matches!(event, Event::Call) {
                continue;
            }
            let can_be_served = lives.lives.iter().any(Life::serves);
            let mut tried: Vec<Arc<str>> = Vec::new();
            let served = loop {
                let Ok(claim) = balancer.pick_excluding(which.to_le_bytes(), &tried) else { break false };
                let life = lives.lives.iter_mut().find(|life| *life.code == **claim.code());
                let life = life.ok_or_else(|| TestCaseError::fail("one that has left was asked"))?;
                prop_assert!(!life.is_drained, "a drained one was asked");
                claim.report_at(if life.is_alive { Outcome::Success } else { Outcome::Failure }, lives.now);
                if life.is_alive {
                    break true;
                }
                prop_assert!(!(can_be_served && life.is_guarded), "a guarded one was asked before one that lives");
                life.asked_since += 1;
                tried.push(claim.code().clone());
            };
            prop_assert!(served || !can_be_served, "nobody was found, though there was one");
        }
    }
}

#[test]
fn nobody_is_refused_by_what_held_before() {
    const THREADS: usize = 4;
    let normals = (0..300).map(|number| instance(&format!("n{number}")));
    let all: Vec<Arc<ObservedInstance>> = std::iter::once(instance("m")).chain(normals).map(Arc::new).collect();
    let mut writer = ViewWriter::new(Snapshot::new("s", 1, vec![]));
    for candidates in [Candidates::Master, Candidates::Normals] {
        let balancer = Balancer::builder(writer.view()).candidates(candidates).build();
        let (begin, end, refused) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (balancer, begin, end, refused) = (&balancer, &begin, &end, &refused);
                scope.spawn(move || {
                    for _ in 0..200 {
                        begin.wait();
                        let is_refused = match thread {
                            0 => balancer.pick("").is_err(),
                            1 => balancer.pick_code("m").is_none(),
                            2 => balancer.explain("").chosen.is_err(),
                            _ => balancer.pick_excluding("", &["other"]).is_err(),
                        };
                        refused.fetch_add(usize::from(is_refused), Ordering::Relaxed);
                        end.wait();
                    }
                });
            }
            for round in 0..200 {
                writer.store(Arc::new(Snapshot::new("s", round, vec![])));
                let _ = balancer.pick("").unwrap_err();
                writer.store(Arc::new(Snapshot::new("s", round, all.clone())));
                // From here on nobody may say that there is none.
                begin.wait();
                end.wait();
            }
        });
        assert_eq!(refused.into_inner(), 0, "{candidates:?}");
    }
}
