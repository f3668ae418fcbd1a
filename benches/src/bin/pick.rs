//! `cargo xtask bench pick`: what a pick costs, against the peers that a Rust programmer would take instead.
//!
//! Ours is always the whole: `Balancer::pick`, with health (passive ejection, slow start) and weights on, and the release of
//! the claim, which keeps the count of claims in flight. What the peers do is said at each.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use maglev::{ConsistentHasher, Maglev};
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::health_check::TcpHealthCheck;
use pingora_load_balancing::selection::{BackendIter, BackendSelection, Random, RoundRobin};
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use pointsman_balance::{Algorithm, Balancer};
use pointsman_bench::{Contender, Duel, Figures, header, threads};
use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, View};
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PendingRequests};

/// Instances where nothing else is said.
const FEW: usize = 10;
const MANY: usize = 1000;

/// Different keys; a power of two, so that going through them costs next to nothing.
const KEYS: usize = 1024;

/// As many tries as pingora's own documentation gives `select`.
const PINGORA_TRIES: usize = 256;

#[allow(clippy::print_stdout)] // A bench's result is what it prints.
fn main() {
    println!("{}", header());
    for figures in
        against_pingora().chain(against_maglev()).chain(against_tower()).chain(many_against_few()).chain(again())
    {
        println!("{figures}");
    }
}

fn against_pingora() -> impl Iterator<Item = Figures> {
    let even = |_| 1;
    let uneven = |index| 1 + index as u32 % 5;
    let rows = [
        (Algorithm::RoundRobin, even as fn(usize) -> u32),
        (Algorithm::WeightedRoundRobin, uneven),
        (Algorithm::Random, even),
        (Algorithm::WeightedRandom, uneven),
    ];
    rows.into_iter().flat_map(|(algorithm, weight)| {
        [(1, 0.15), (2, 0.3)].into_iter().map(move |(count, target)| {
            let theirs = match algorithm {
                Algorithm::RoundRobin | Algorithm::WeightedRoundRobin => pingora::<RoundRobin>(count, weight),
                _ => pingora::<Random>(count, weight),
            };
            let what = format!("{algorithm}, {FEW} instances, {count} thread{}", if count > 1 { "s" } else { "" });
            let peer = "pingora-load-balancing 0.9.1 `select`";
            Duel { what, peer, target, ours: ours(algorithm, FEW, count, weight), theirs }.run()
        })
    })
}

/// `LoadBalancer::select` with a health check set (not running: every backend is and stays healthy) and the same weights.
/// Its round robin and random are weighted by nature. It counts nothing in flight, so nothing is released.
fn pingora<S>(count: usize, weight: fn(usize) -> u32) -> Contender<'static>
where
    S: BackendSelection<Config = ()> + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let backend = |index| Backend::new_with_weight(&address(index), weight(index) as usize).ok();
    let mut backends = Backends::new(Static::new((0..FEW).filter_map(backend).collect::<BTreeSet<_>>()));
    backends.set_health_check(TcpHealthCheck::new());
    let balancer = LoadBalancer::<S>::from_backends(backends);
    assert!(balancer.update().now_or_never().is_some_and(|updated| updated.is_ok()), "pingora cannot start");
    assert!(balancer.select(b"", PINGORA_TRIES).is_some(), "pingora selects nobody");
    Box::new(move |operations| {
        threads_or_here(count, operations, |operations| {
            for _ in 0..operations {
                black_box(&balancer.select(black_box(b""), PINGORA_TRIES));
            }
        })
    })
}

/// A bare look-up, `Maglev::get`, which neither looks at health nor counts anything: once in a table of the size that the
/// crate chooses (1,009 places), and once in one of the size that we have, which moves as few keys as ours.
fn against_maglev() -> impl Iterator<Item = Figures> {
    [(0, "maglev 0.2 `get`, its own table size"), (65_537, "maglev 0.2 `get`, our table size")].into_iter().map(
        |(capacity, peer)| {
            let keys = keys();
            let maglev = Maglev::with_capacity((0..FEW).map(address), capacity);
            let theirs = Box::new(move |operations| {
                let start = Instant::now();
                for i in 0..operations {
                    black_box(maglev.get(black_box(&keys[i as usize % KEYS])));
                }
                start.elapsed()
            });
            let what = format!("ip-hash, {FEW} instances");
            Duel { what, peer, target: 2.0, ours: ours(Algorithm::IpHash, FEW, 1, |_| 1), theirs }.run()
        },
    )
}

/// `Balance` over `PendingRequests`, in a mutex because it wants `&mut`: ready, call, and the response that releases it. The
/// service behind does nothing.
fn against_tower() -> impl Iterator<Item = Figures> {
    [1, 2].into_iter().map(|count| {
        let service = |_| PendingRequests::new(Nothing, CompleteOnResponse::default());
        let services: Vec<_> = (0..FEW).map(service).collect();
        let balance = Mutex::new(Balance::<_, ()>::new(ServiceList::new::<()>(services)));
        let call = move |operations| {
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..operations {
                let reply = {
                    let Ok(mut balance) = balance.lock() else { return };
                    assert!(balance.poll_ready(&mut context).is_ready(), "tower is not ready");
                    balance.call(())
                };
                black_box(&reply.now_or_never());
            }
        };
        let theirs = Box::new(move |operations| threads_or_here(count, operations, &call));
        let what = format!("least-connections, {FEW} instances, {count} thread{}", if count > 1 { "s" } else { "" });
        let ours = ours(Algorithm::LeastConnections, FEW, count, |_| 1);
        Duel { what, peer: "tower 0.5 p2c `Balance`, pending requests, in a mutex", target: 0.25, ours, theirs }.run()
    })
}

/// Nobody but ourselves: the same algorithm with a hundred times the instances.
fn many_against_few() -> impl Iterator<Item = Figures> {
    Algorithm::ALL.into_iter().map(|algorithm| {
        let weight = |index| 1 + index as u32 % 5;
        let (ours, theirs) = (ours(algorithm, MANY, 1, weight), ours(algorithm, FEW, 1, weight));
        let what = format!("{algorithm}, {MANY} instances");
        Duel { what, peer: "the same with 10", target: 1.5, ours, theirs }.run()
    })
}

/// Another pick, after one that has failed: the first and the second against the first alone.
fn again() -> impl Iterator<Item = Figures> {
    Algorithm::ALL.into_iter().map(|algorithm| {
        let (balancer, keys) = (balancer(algorithm, MANY, |_| 1), keys());
        let ours = Box::new(move |operations| {
            let start = Instant::now();
            for i in 0..operations {
                let key = black_box(&keys[i as usize % KEYS]);
                let Ok(failed) = balancer.pick(key) else { continue };
                black_box(&balancer.pick_excluding(key, &[failed.code()]));
            }
            start.elapsed()
        });
        let what = format!("{algorithm}, {MANY} instances, and another one");
        Duel { what, peer: "without the other one", target: 20.0, ours, theirs: self::ours(algorithm, MANY, 1, |_| 1) }
            .run()
    })
}

/// A pick and its release.
fn ours(algorithm: Algorithm, instances: usize, count: usize, weight: fn(usize) -> u32) -> Contender<'static> {
    let (balancer, keys) = (balancer(algorithm, instances, weight), keys());
    Box::new(move |operations| {
        threads_or_here(count, operations, |operations| {
            for i in 0..operations {
                black_box(&balancer.pick(black_box(&keys[i as usize % KEYS])));
            }
        })
    })
}

fn balancer(algorithm: Algorithm, instances: usize, weight: fn(usize) -> u32) -> Balancer {
    let instance = |index| {
        let mut instance = ObservedInstance::from(
            Instance::new("bench").code(address(index)).address(address(index)).weight(weight(index)),
        );
        instance.role = Role::Normal;
        Arc::new(instance)
    };
    let view = View::fixed(Snapshot::new("bench", 1, (0..instances).map(instance).collect()));
    Balancer::builder(view).algorithm(algorithm).slow_start(Duration::from_secs(30)).build()
}

/// On one thread without the start of another.
fn threads_or_here(count: usize, operations: u64, work: impl Fn(u64) + Sync) -> Duration {
    if count > 1 {
        return threads(count, operations, work);
    }
    let start = Instant::now();
    work(operations);
    start.elapsed()
}

fn address(index: usize) -> String {
    format!("10.0.{}.{}:8080", index / 250, 1 + index % 250)
}

/// Clients' addresses.
fn keys() -> [String; KEYS] {
    std::array::from_fn(|i| format!("192.168.{}.{}", i / 256, i % 256))
}

/// A service that does nothing.
struct Nothing;

impl Service<()> for Nothing {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}
