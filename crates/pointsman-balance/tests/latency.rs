//! A simulation of tower's demonstration (`examples/tower-balance.rs`, tower#76): ten endpoints that answer within at most
//! 1 ms to 1 s, fifty requests at a time. Time is simulated, chance is seeded: the figures are always the same.

// The lint's exception for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_balance::{Algorithm, Balancer, Claim, Outcome};
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, View};

const MAX_LATENCIES: [u64; 10] = [1, 5, 10, 10, 10, 100, 100, 100, 500, 1000];
const AT_A_TIME: usize = 50;
const REQUESTS: usize = 50_000;

/// The 99th percentile in milliseconds.
fn p99(algorithm: Algorithm) -> f64 {
    let instance = |index| {
        let mut instance = ObservedInstance::from(Instance::new("s").code(format!("{index}")));
        instance.role = Role::Normal;
        Arc::new(instance)
    };
    let view = View::fixed(Snapshot::new("s", 1, (0..10).map(instance).collect()));
    let balancer = Balancer::builder(view).algorithm(algorithm).seed(42).build();
    let mut random = fastrand::Rng::with_seed(42);
    let start = Instant::now();
    let (mut claims, mut ends) = (Vec::new(), BinaryHeap::new());
    let mut latencies = Vec::with_capacity(REQUESTS);
    let mut now = start;
    for request in 0..REQUESTS {
        if request >= AT_A_TIME {
            let Reverse((end, claim)): Reverse<(Instant, usize)> = ends.pop().unwrap();
            now = end;
            let claim: Claim = Option::take(&mut claims[claim]).unwrap();
            claim.report_at(Outcome::Success, now);
        }
        let claim = balancer.pick_at("", now).unwrap();
        let most = MAX_LATENCIES[claim.code().parse::<usize>().unwrap()];
        let latency = Duration::from_millis(most).mul_f64(random.f64());
        latencies.push(latency);
        ends.push(Reverse((now + latency, claims.len())));
        claims.push(Some(claim));
    }
    latencies.sort_unstable();
    latencies[REQUESTS * 99 / 100].as_secs_f64() * 1e3
}

#[test]
fn peak_ewma_keeps_the_slow_from_being_asked() {
    let (in_turn, least, peak) =
        (p99(Algorithm::RoundRobin), p99(Algorithm::LeastConnections), p99(Algorithm::PeakEwma));
    println!("p99: round robin {in_turn:.0} ms, least connections {least:.0} ms, peak ewma {peak:.0} ms");
    assert!((880.0..930.0).contains(&in_turn), "{in_turn}");
    assert!(least < in_turn / 2.0, "{least}");
    assert!(peak < 100.0, "{peak}");
}
