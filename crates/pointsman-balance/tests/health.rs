//! Ejection and slow start, with the time passed in.

// The lint's exception for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_balance::{Algorithm, Balancer, Ejection, Outcome, Standing};
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, View, ViewWriter};

const SECOND: Duration = Duration::from_secs(1);

fn service(n: usize) -> Snapshot {
    let instance = |index| {
        let mut instance = ObservedInstance::from(Instance::new("s").code(format!("code-{index:03}")));
        instance.role = Role::Normal;
        Arc::new(instance)
    };
    Snapshot::new("s", 1, (0..n).map(instance).collect())
}

/// Lets `code` fail so often in a row, and all others answer.
fn fail(balancer: &Balancer, code: &str, times: usize, now: Instant) {
    let mut left = times;
    for key in 0..100_000 {
        let claim = balancer.pick_at(format!("{key}"), now).unwrap();
        let fails = &**claim.code() == code;
        claim.report_at(if fails { Outcome::Failure } else { Outcome::Success }, now);
        left -= usize::from(fails);
        if left == 0 {
            return;
        }
    }
    panic!("{code} was not picked {times} times");
}

fn share(balancer: &Balancer, code: &str, now: Instant) -> f64 {
    let hits = (0..2000).filter(|key| &**balancer.pick_at(format!("{key}"), now).unwrap().code() == code).count();
    hits as f64 / 2000.0
}

#[test]
fn five_failures_eject_for_thirty_seconds_and_twice_that_the_next_time() {
    for algorithm in Algorithm::ALL {
        let now = Instant::now();
        let balancer = Balancer::builder(View::fixed(service(4))).algorithm(algorithm).seed(3).build();
        fail(&balancer, "code-001", 4, now);
        assert!(share(&balancer, "code-001", now) > 0.0, "{algorithm}: four are not enough");
        fail(&balancer, "code-001", 1, now);
        assert_eq!(share(&balancer, "code-001", now), 0.0, "{algorithm}");
        assert_eq!(share(&balancer, "code-001", now + 29 * SECOND), 0.0, "{algorithm}");
        let explained = balancer.explain_at("x", now + 10 * SECOND);
        assert_eq!(explained.instances[1].standing, Standing::Ejected { until: now + 30 * SECOND });
        assert!(explained.to_string().contains("ejected for 20.0s more"), "{explained}");
        let later = now + 31 * SECOND;
        assert!(share(&balancer, "code-001", later) > 0.0, "{algorithm}: back again");
        fail(&balancer, "code-001", 5, later);
        assert_eq!(share(&balancer, "code-001", later + 59 * SECOND), 0.0, "{algorithm}");
        assert!(share(&balancer, "code-001", later + 61 * SECOND) > 0.0, "{algorithm}");
    }
}

#[test]
fn a_success_in_between_starts_the_count_anew() {
    let now = Instant::now();
    let balancer = Balancer::new(View::fixed(service(1)), Algorithm::RoundRobin);
    for _ in 0..10 {
        for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success] {
            balancer.pick_at("", now).unwrap().report(outcome);
        }
    }
    assert!(!balancer.explain_at("", now).panic);
}

#[test]
fn at_most_a_tenth_is_out_but_one_always_may_be() {
    let now = Instant::now();
    for (n, limit) in [(3, 1), (10, 1), (20, 2), (35, 3)] {
        let balancer = Balancer::new(View::fixed(service(n)), Algorithm::RoundRobin);
        for _ in 0..10 * n {
            balancer.pick_at("", now).unwrap().report(Outcome::Failure);
        }
        let explained = balancer.explain_at("", now);
        let out = explained.instances.iter().filter(|one| matches!(one.standing, Standing::Ejected { .. })).count();
        assert_eq!(out, limit, "{n}");
    }
}

#[test]
fn below_half_all_are_used() {
    let now = Instant::now();
    let mut rule = Ejection::default();
    rule.max_percent = 100;
    let balancer = Balancer::builder(View::fixed(service(4))).algorithm(Algorithm::RoundRobin).ejection(rule).build();
    fail(&balancer, "code-000", 5, now);
    fail(&balancer, "code-001", 5, now);
    assert_eq!(share(&balancer, "code-000", now), 0.0, "half is not below half");
    fail(&balancer, "code-002", 5, now);
    assert_eq!(share(&balancer, "code-000", now), 0.25);
    assert!(balancer.explain_at("", now).panic);
    // A single instance is never given up.
    let alone = Balancer::new(View::fixed(service(1)), Algorithm::PeakEwma);
    for _ in 0..20 {
        alone.pick_at("", now).unwrap().report(&Err::<(), ()>(()));
    }
    assert!(alone.explain_at("", now).panic);
}

#[test]
fn ejection_can_be_turned_off() {
    let now = Instant::now();
    let balancer = Balancer::builder(View::fixed(service(2))).ejection(None).build();
    for _ in 0..100 {
        balancer.pick_at("", now).unwrap().report(Outcome::Failure);
    }
    assert_eq!(share(&balancer, "code-000", now), 0.5);
}

#[test]
fn an_ejection_moves_only_the_keys_of_the_ejected() {
    let now = Instant::now();
    let balancer = Balancer::new(View::fixed(service(10)), Algorithm::UrlHash);
    let at = |key: u32, now| balancer.pick_at(format!("{key}"), now).unwrap().code().clone();
    let before: Vec<_> = (0..1000).map(|key| at(key, now)).collect();
    fail(&balancer, "code-003", 5, now);
    for (key, before) in (0..1000).zip(&before) {
        assert_eq!(at(key, now) == *before, &**before != "code-003");
    }
    for (key, before) in (0..1000).zip(&before) {
        assert_eq!(at(key, now + 31 * SECOND), *before);
    }
}

#[test]
fn who_joins_starts_slowly_and_who_was_there_does_not() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::WeightedRoundRobin,
        Algorithm::Random,
        Algorithm::WeightedRandom,
        Algorithm::LeastConnections,
    ] {
        let now = Instant::now();
        let mut writer = ViewWriter::new(service(4));
        let balancer = Balancer::builder(writer.view()).algorithm(algorithm).seed(5).slow_start(100 * SECOND).build();
        assert!((share(&balancer, "code-003", now) - 0.25).abs() < 0.03, "{algorithm}: all are warm at first");
        writer.store(Arc::new(service(5)));
        for (age, warmth) in [(0, 0.1), (5, 0.1), (50, 0.5), (80, 0.8), (100, 1.0), (200, 1.0)] {
            let got = share(&balancer, "code-004", now + age * SECOND);
            // Its weight rises in steps of a sixteenth.
            let (least, most) = ((warmth - 0.0625) / 5.0, warmth / (4.0 + warmth));
            assert!(got > least - 0.03 && got < most + 0.03, "{algorithm} after {age} s: {got}");
        }
    }
}

#[test]
fn who_returns_is_new_again() {
    let now = Instant::now();
    let mut writer = ViewWriter::new(service(2));
    let balancer = Balancer::builder(writer.view()).slow_start(100 * SECOND).build();
    fail(&balancer, "code-001", 5, now);
    assert_eq!(share(&balancer, "code-001", now), 0.0);
    let held = balancer.pick_at("", now).unwrap();
    writer.store(Arc::new(service(1)));
    assert_eq!(share(&balancer, "code-000", now), 1.0);
    writer.store(Arc::new(service(2)));
    let got = share(&balancer, "code-001", now);
    assert!(got > 0.05 && got < 0.15, "no longer ejected, but cold: {got}");
    drop(held);
}
