//! What a relay counts. Handles are kept, so that nothing is looked up for a message; no topic is a label.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::settings::Route;
use crate::packet::Qos;

/// All counters of one relay. Cheap to clone; the clones are one.
#[derive(Debug, Clone)]
pub(super) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    received: Family<RouteQos, Count>,
    delivered: Family<RouteQos, Count>,
    responses: Family<RouteOnly, Count>,
    redispatched: Family<RouteOnly, Count>,
    delivery: Family<RouteOnly, Histogram, fn() -> Histogram>,
    response: Family<RouteOnly, Histogram, fn() -> Histogram>,
    in_flight: Level,
    requests: Level,
    dead_letters: Family<Why, Count>,
    dropped: Family<Why, Count>,
    errors: Family<Why, Count>,
    connected: Family<Broker, Level>,
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteQos {
    #[prometheus(flatten)]
    of: RouteOnly,
    qos: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteOnly {
    route: String,
    service: String,
    /// The label `registry`, only where that is not the relay's own.
    #[prometheus(flatten)]
    registry: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Broker {
    broker: String,
}

/// The handles of one route.
#[derive(Debug)]
pub(super) struct RouteMetrics {
    label: RouteOnly,
    received: [Count; 3],
    delivered: [Count; 3],
    pub(super) responses: Count,
    pub(super) redispatched: Count,
    /// From the arrival of a message to its acknowledgement by the service's broker, in seconds.
    pub(super) delivery: Histogram,
    /// From the arrival of a request to its answer, in seconds.
    pub(super) response: Histogram,
}

impl RouteMetrics {
    pub(super) fn received(&self, qos: Qos) {
        self.received[usize::from(qos.number())].inc();
    }

    pub(super) fn delivered(&self, qos: Qos) {
        self.delivered[usize::from(qos.number())].inc();
    }
}

/// What a relay has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Figures {
    /// Messages that a route has matched.
    pub received: u64,
    /// Messages that a service's broker has taken over.
    pub delivered: u64,
    /// Answers passed back.
    pub responses: u64,
    /// Messages sent again, to another instance.
    pub redispatched: u64,
    /// Messages that no instance has taken, published as dead letters.
    pub dead_letters: u64,
    /// Messages that are gone.
    pub dropped: u64,
    /// Senders that were told that there will be no answer.
    pub errors_told: u64,
    /// Messages that are not acknowledged yet.
    pub in_flight: u64,
    /// Requests that are not answered yet.
    pub requests: u64,
}

fn buckets() -> Histogram {
    // From 100 µs to about 1.6 s, and beyond.
    Histogram::new(exponential_buckets(0.0001, 2.0, 15))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let buckets: fn() -> Histogram = buckets;
        let mut inner = Inner {
            registry: Registry::with_prefix("pointsman_mqtt"),
            received: Family::default(),
            delivered: Family::default(),
            responses: Family::default(),
            redispatched: Family::default(),
            delivery: Family::new_with_constructor(buckets),
            response: Family::new_with_constructor(buckets),
            in_flight: Level::default(),
            requests: Level::default(),
            dead_letters: Family::default(),
            dropped: Family::default(),
            errors: Family::default(),
            connected: Family::default(),
        };
        inner.register();
        Self(Arc::new(inner))
    }

    pub(super) fn route(&self, route: &Route) -> RouteMetrics {
        let inner = &*self.0;
        let registry = route.registry.iter().map(|registry| ("registry", registry.to_string())).collect();
        let label = RouteOnly { route: route.pattern.clone(), service: route.service.to_string(), registry };
        let by_qos = |family: &Family<RouteQos, Count>| {
            let of = |qos| RouteQos { of: label.clone(), qos };
            [0, 1, 2].map(|qos| family.get_or_create_owned(&of(qos)))
        };
        RouteMetrics {
            received: by_qos(&inner.received),
            delivered: by_qos(&inner.delivered),
            responses: inner.responses.get_or_create_owned(&label),
            redispatched: inner.redispatched.get_or_create_owned(&label),
            delivery: inner.delivery.get_or_create_owned(&label),
            response: inner.response.get_or_create_owned(&label),
            label,
        }
    }

    /// Forgets the routes that are in `before` and not in `now`: what of theirs is still under way is counted no more.
    pub(super) fn forget_gone(&self, before: &[Arc<super::routes::Route>], now: &[Arc<super::routes::Route>]) {
        let inner = &*self.0;
        let is_gone = |label: &&RouteOnly| !now.iter().any(|route| route.metrics.label == **label);
        for label in before.iter().map(|route| &route.metrics.label).filter(is_gone) {
            for qos in 0..3 {
                let label = RouteQos { of: label.clone(), qos };
                inner.received.remove(&label);
                inner.delivered.remove(&label);
            }
            inner.responses.remove(label);
            inner.redispatched.remove(label);
            inner.delivery.remove(label);
            inner.response.remove(label);
        }
    }

    /// How much is under way.
    pub(super) fn levels(&self, in_flight: usize, requests: usize) {
        self.0.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.0.requests.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    pub(super) fn dead_letter(&self, reason: &'static str) {
        self.0.dead_letters.get_or_create(&Why { reason }).inc();
    }

    pub(super) fn dropped(&self, reason: &'static str, count: u64) {
        self.0.dropped.get_or_create(&Why { reason }).inc_by(count);
    }

    pub(super) fn error_told(&self, reason: &'static str) {
        self.0.errors.get_or_create(&Why { reason }).inc();
    }

    pub(super) fn connected(&self, broker: &str, connected: bool) {
        self.0.connected.get_or_create(&Broker { broker: broker.to_owned() }).set(i64::from(connected));
    }

    pub(super) fn figures(&self, all: &[Arc<super::routes::Route>]) -> Figures {
        let inner = &*self.0;
        let why = |family: &Family<Why, Count>| {
            REASONS.iter().map(|&reason| family.get_or_create(&Why { reason }).get()).sum()
        };
        let routes = |value: fn(&RouteMetrics) -> u64| {
            // Two routes with one expression and one service share their counters.
            let mut seen = std::collections::HashSet::new();
            let fresh = all.iter().filter(|route| seen.insert((&route.settings.pattern, &route.service)));
            fresh.map(|route| value(&route.metrics)).sum()
        };
        Figures {
            received: routes(|route| route.received.iter().map(Counter::get).sum()),
            delivered: routes(|route| route.delivered.iter().map(Counter::get).sum()),
            responses: routes(|route| route.responses.get()),
            redispatched: routes(|route| route.redispatched.get()),
            dead_letters: why(&inner.dead_letters),
            dropped: why(&inner.dropped),
            errors_told: why(&inner.errors),
            in_flight: u64::try_from(inner.in_flight.get()).unwrap_or(0),
            requests: u64::try_from(inner.requests.get()).unwrap_or(0),
        }
    }

    /// Appends all of it in Prometheus' text format.
    pub(super) fn write(&self, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = text::encode_registry(out, &self.0.registry);
    }
}

impl Inner {
    fn register(&mut self) {
        let Self { registry: r, .. } = self;
        r.register("messages_received", "Messages that a route has matched", self.received.clone());
        r.register("messages_delivered", "Messages that a service's broker has taken over", self.delivered.clone());
        r.register("responses", "Answers passed back to senders", self.responses.clone());
        r.register("redispatched", "Messages sent again, to another instance", self.redispatched.clone());
        r.register(
            "delivery_seconds",
            "From the arrival of a message to its acknowledgement by the service's broker",
            self.delivery.clone(),
        );
        r.register("response_seconds", "From the arrival of a request to its answer", self.response.clone());
        r.register("in_flight", "Messages that are not acknowledged yet", self.in_flight.clone());
        r.register("requests_in_flight", "Requests that are not answered yet", self.requests.clone());
        r.register("dead_letters", "Messages that no instance has taken", self.dead_letters.clone());
        r.register("dropped", "Messages that are gone", self.dropped.clone());
        r.register("errors_told", "Senders told that there will be no answer", self.errors.clone());
        r.register("connected", "Whether the connection to a broker is up", self.connected.clone());
    }
}

/// Every reason by which something is counted.
pub(super) const REASONS: [&str; 14] = [
    "response-topic",
    "no-route",
    "no-instance",
    "no-subscriber",
    "no-answer",
    "instance-gone",
    "refused",
    "too-large",
    "expired",
    "loop",
    "late",
    "retained",
    "connection-lost",
    "topic",
];
