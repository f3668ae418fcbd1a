//! What a proxy counts. Each worker counts for itself, so that none waits for another; whoever asks gets the sum.

mod instances;

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use pointsman_core::ServiceId;
use pointsman_net::metrics::Kind::{Counter, Gauge, Histogram};
use pointsman_net::metrics::MetricsText;

use crate::problem::Kind;

pub(crate) use self::instances::Instances;

/// Upper bounds of the durations' buckets, in microseconds.
const BOUNDS: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// A number for each worker, far enough apart not to share a cache line.
#[derive(Debug)]
pub(crate) struct Sharded<T>(Box<[Padded<T>]>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> Sharded<T> {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Padded::default()).collect())
    }

    pub(crate) fn of(&self, worker: usize) -> &T {
        &self.0[worker].0
    }

    fn sum(&self, of: impl Fn(&T) -> u64) -> u64 {
        self.0.iter().fold(0, |sum, shard| sum.wrapping_add(of(&shard.0)))
    }
}

/// A counter, or a level: what goes up on one worker goes down on the same.
pub(crate) type Count = Sharded<AtomicU64>;

impl Count {
    pub(crate) fn add(&self, worker: usize, count: u64) {
        self.of(worker).fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, worker: usize, count: u64) {
        self.of(worker).fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.sum(|shard| shard.load(Ordering::Relaxed))
    }
}

/// What is counted of the proxy as a whole.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) connections: Count,
    pub(crate) accept_failures: Count,
    pub(crate) tls_failures: Count,
    /// Requests that no route is for.
    pub(crate) unrouted: Arc<RouteMetrics>,
    problems: Vec<AtomicU64>,
    pub(crate) log_dropped: Arc<AtomicU64>,
}

/// What is counted of a route.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    name: Arc<str>,
    service: ServiceId,
    shards: Sharded<RouteShard>,
}

#[derive(Debug, Default)]
pub(crate) struct RouteShard {
    /// By the first digit of the status; 0: the client did not wait for one.
    answers: [AtomicU64; 6],
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
    in_flight: AtomicI64,
    received: AtomicU64,
    sent: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) queued: AtomicU64,
    /// Requests of a share that went home.
    pub(crate) split_home: AtomicU64,
    pub(crate) mirrored: AtomicU64,
    pub(crate) mirror_dropped: AtomicU64,
    /// Copies under way.
    pub(crate) copies: AtomicU64,
    /// Answers that broke off.
    pub(crate) broken: AtomicU64,
}

/// Requests to the instances of a service, and what came of them.
#[derive(Debug)]
pub(crate) struct ServiceMetrics {
    shards: Sharded<ServiceShard>,
    pub(crate) checks_passed: AtomicU64,
    pub(crate) checks_failed: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct ServiceShard {
    pub(crate) answered: AtomicU64,
    pub(crate) unreachable: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) connects: AtomicU64,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            connections: Count::new(workers),
            accept_failures: Count::new(workers),
            tls_failures: Count::new(workers),
            unrouted: Arc::new(RouteMetrics::new("".into(), "".into(), workers)),
            problems: Kind::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            log_dropped: Arc::default(),
        }
    }

    pub(crate) fn problem(&self, kind: Kind) {
        count(&self.problems[kind as usize]);
    }

    /// Everything, as Prometheus reads it; without the end.
    pub(crate) fn text(
        &self,
        routes: &[Arc<RouteMetrics>],
        services: &[(ServiceId, Arc<ServiceMetrics>)],
        instances: &[Instances],
    ) -> String {
        let mut written = String::new();
        let mut text = MetricsText::new(&mut written, "pointsman_http");
        text.gauge("connections", "Connections of clients now", self.connections.get());
        text.counter("accept_failures", "Connections that could not be accepted", self.accept_failures.get());
        text.counter("tls_failures", "TLS handshakes that have failed", self.tls_failures.get());
        let help = "Requests that the proxy itself has answered, by the type of the problem";
        let mut family = text.family("problems", Counter, help);
        for (kind, problems) in Kind::ALL.iter().zip(&self.problems) {
            family.sample([("type", kind.name())], problems.load(Ordering::Relaxed));
        }
        let help = "Lines of the access log that were not written because writing was too slow";
        text.counter("access_log_dropped", help, self.log_dropped.load(Ordering::Relaxed));
        let all: Vec<&Arc<RouteMetrics>> = routes.iter().chain([&self.unrouted]).collect();
        write_routes(&mut text, &all);
        write_services(&mut text, services);
        instances::write(&mut text, instances);
        written
    }
}

impl RouteMetrics {
    pub(crate) fn new(name: Arc<str>, service: ServiceId, workers: usize) -> Self {
        Self { name, service, shards: Sharded::new(workers) }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn service(&self) -> &ServiceId {
        &self.service
    }

    pub(crate) fn of(&self, worker: usize) -> &RouteShard {
        self.shards.of(worker)
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        iter::once(("route", &*self.name)).chain(service_labels(&self.service))
    }
}

impl RouteShard {
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// `status` 0: the client has gone.
    pub(crate) fn end(&self, status: u16, time: Duration, received: u64, sent: u64) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        count(&self.answers[usize::from(status / 100).min(5)]);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| time <= *bound).unwrap_or(BOUNDS.len());
        count(&self.buckets[bucket]);
        self.microseconds.fetch_add(time, Ordering::Relaxed);
        if received > 0 {
            self.received.fetch_add(received, Ordering::Relaxed);
        }
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }
}

impl ServiceMetrics {
    pub(crate) fn new(workers: usize) -> Self {
        Self { shards: Sharded::new(workers), checks_passed: AtomicU64::new(0), checks_failed: AtomicU64::new(0) }
    }

    pub(crate) fn of(&self, worker: usize) -> &ServiceShard {
        self.shards.of(worker)
    }
}

fn write_routes(text: &mut MetricsText<'_>, routes: &[&Arc<RouteMetrics>]) {
    let read = |of: fn(&RouteShard) -> &AtomicU64| move |shard: &RouteShard| of(shard).load(Ordering::Relaxed);
    let help = "Requests by route and class of the answer; gone: the client did not wait for one";
    let mut family = text.family("requests", Counter, help);
    for route in routes {
        for (class, name) in ["gone", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let count = route.shards.sum(|shard| shard.answers[class].load(Ordering::Relaxed));
            if count > 0 || name == "2xx" {
                family.sample(route.labels().chain([("code", name)]), count);
            }
        }
    }
    let help = "From a request's head to the end of its answer, by route";
    let mut family = text.family("request_duration_seconds", Histogram, help);
    for route in routes {
        let mut sum = 0;
        for (at, bound) in BOUNDS.iter().map(Some).chain([None]).enumerate() {
            sum += route.shards.sum(|shard| shard.buckets[at].load(Ordering::Relaxed));
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| seconds(*bound).to_string());
            family.part("_bucket", route.labels().chain([("le", &*bound)]), sum);
        }
        let time = route.shards.sum(read(|shard| &shard.microseconds));
        family.part("_sum", route.labels(), seconds(time));
        family.part("_count", route.labels(), sum);
    }
    let mut family = text.family("in_flight", Gauge, "Requests under way, by route");
    for route in routes {
        let level: i64 = route.shards.0.iter().map(|shard| shard.0.in_flight.load(Ordering::Relaxed)).sum();
        family.sample(route.labels(), level);
    }
    let mut counter = |name: &str, help: &str, of: fn(&RouteShard) -> &AtomicU64| {
        let mut family = text.family(name, Counter, help);
        for route in routes {
            family.sample(route.labels(), route.shards.sum(read(of)));
        }
    };
    counter("received_bytes", "Bytes of bodies received from clients, by route", |shard| &shard.received);
    counter("sent_bytes", "Bytes of bodies sent to clients, by route", |shard| &shard.sent);
    counter("retries", "Requests sent again to another instance, by route", |shard| &shard.retries);
    counter("queued", "Requests that had to wait for others to end, or for a master, by route", |shard| &shard.queued);
    counter(
        "split_home",
        "Requests that went to the route's own service because nobody could serve their share, by route",
        |shard| &shard.split_home,
    );
    counter("broken_answers", "Answers that broke off, by route", |shard| &shard.broken);
    counter("mirrored", "Copies sent to a mirror, by route", |shard| &shard.mirrored);
    counter("mirror_dropped", "Copies that were not sent: too large, or too many, by route", |shard| {
        &shard.mirror_dropped
    });
}

fn write_services(text: &mut MetricsText<'_>, services: &[(ServiceId, Arc<ServiceMetrics>)]) {
    type Of = fn(&ServiceShard) -> &AtomicU64;
    let mut family = text.family("attempts", Counter, "Requests sent to instances, by service and outcome");
    for (service, metrics) in services {
        let outcomes: [(&str, Of); 4] = [
            ("answered", |shard| &shard.answered),
            ("unreachable", |shard| &shard.unreachable),
            ("timeout", |shard| &shard.timeouts),
            ("broken", |shard| &shard.broken),
        ];
        for (outcome, of) in outcomes {
            let count = metrics.shards.sum(|shard| of(shard).load(Ordering::Relaxed));
            family.sample(service_labels(service).chain([("outcome", outcome)]), count);
        }
    }
    let mut family = text.family("connects", Counter, "Connections made to instances, by service");
    for (service, metrics) in services {
        let count = metrics.shards.sum(|shard| shard.connects.load(Ordering::Relaxed));
        family.sample(service_labels(service), count);
    }
}

fn seconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64()
}

/// The labels by which a service is told: the registry is one of them only where it is not the proxy's own.
fn service_labels(service: &ServiceId) -> impl Iterator<Item = (&str, &str)> {
    let registry = service.registry.as_deref().map(|registry| ("registry", registry));
    iter::once(("service", &*service.name)).chain(registry)
}
