//! What an agent counts. Handles are kept, so that nothing is looked up for a usual request; no name of a service is a label of
//! what clients ask for.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use hyper::StatusCode;
use pointsman_net::metrics::{Kind, MetricsText};
use pointsman_registry::Freshness;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::State;
use crate::problem;

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Asked, Count>,
    refused: Family<Why, Count>,
    durations: Family<Call, Histogram, fn() -> Histogram>,
    connections: Level,
    watchers: Level,
    pub(crate) accept_failures: Count,
    pub(crate) handshake_failures: Count,
    pub(crate) resyncs: Count,
    pub(crate) operations: Count,
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    call: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

/// The handles of one call.
#[derive(Debug, Clone)]
pub(crate) struct CallMetrics {
    call: &'static str,
    ok: Count,
    requests: Family<Asked, Count>,
    duration: Histogram,
}

impl CallMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        if status == StatusCode::OK {
            self.ok.inc();
        } else {
            self.requests.get_or_create(&Asked { call: self.call, status: status.as_u16() }).inc();
        }
        self.duration.observe(took.as_secs_f64());
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Counted for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Level);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("pointsman_agent");
        let requests = Family::default();
        registry.register("requests", "Requests answered, by call and status", requests.clone());
        let refused = Family::default();
        registry.register("refused", "Requests that were not let in, by reason", refused.clone());
        let durations: Family<Call, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 3.0, 12)));
        registry.register(
            "request_duration_seconds",
            "From a request's head to its answer's, by call",
            durations.clone(),
        );
        let connections = Level::default();
        registry.register("connections", "Connections now", connections.clone());
        let watchers = Level::default();
        registry.register("watchers", "Streams of events now", watchers.clone());
        let accept_failures = Count::default();
        registry.register("accept_failures", "Connections that could not be accepted", accept_failures.clone());
        let handshake_failures = Count::default();
        registry.register("tls_failures", "TLS handshakes that have failed", handshake_failures.clone());
        let resyncs = Count::default();
        registry.register("resyncs", "Watchers that came too late and started over", resyncs.clone());
        let operations = Count::default();
        registry.register("operations", "Drains, undrains and weights set by operators", operations.clone());
        Self {
            registry,
            requests,
            refused,
            durations,
            connections,
            watchers,
            accept_failures,
            handshake_failures,
            resyncs,
            operations,
        }
    }

    /// What counts the answers to one call.
    pub(crate) fn call(&self, call: &'static str) -> CallMetrics {
        let ok = self.requests.get_or_create(&Asked { call, status: StatusCode::OK.as_u16() }).clone();
        let duration = self.durations.get_or_create(&Call { call }).clone();
        CallMetrics { call, ok, requests: self.requests.clone(), duration }
    }

    pub(crate) fn refused(&self, kind: problem::Kind) {
        self.refused.get_or_create(&Why { reason: kind.name() }).inc();
    }

    pub(crate) fn connected(&self) -> Counted {
        self.connections.inc();
        Counted(self.connections.clone())
    }

    /// Counts a watcher, unless there are too many.
    pub(crate) fn watch(&self, limit: usize) -> Option<Counted> {
        if usize::try_from(self.watchers.inc()).unwrap_or_default() < limit {
            return Some(Counted(self.watchers.clone()));
        }
        self.watchers.dec();
        None
    }

    /// Everything, as Prometheus reads it; without the end.
    pub(crate) fn text(&self, state: &State) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode_registry(&mut text, &self.registry);
        write_levels(&mut text, state);
        text
    }
}

/// What is read off the state when it is asked for.
fn write_levels(text: &mut String, state: &State) {
    let topics = state.feed.topics();
    let snapshots: Vec<Arc<pointsman_core::Snapshot>> = topics.iter().map(|topic| topic.snapshot()).collect();
    let sum =
        |of: &dyn Fn(&pointsman_core::Snapshot) -> usize| snapshots.iter().map(|snapshot| of(snapshot)).sum::<usize>();
    let (registrations, detached) = state.registrations.count();
    let (claims, expired) = state.claims.count();
    let (fresh, age) = match state.feed.directory().freshness() {
        Freshness::Stale { age } => (0, age.as_secs_f64()),
        _ => (1, 0.0),
    };
    let mut text = MetricsText::new(text, "pointsman");
    let mut gauge = |name: &str, help: &str, value: &dyn std::fmt::Display| text.gauge(name, help, value);
    gauge("registrations", "Registrations that this agent keeps", &registrations);
    gauge("registrations_detached", "Of these, alive but not registered now", &detached);
    gauge("claims", "Claims that are out", &claims);
    gauge("registry_fresh", "Whether the registry is there", &fresh);
    gauge("snapshot_age_seconds", "How old the view of the registry is; 0 while it is fresh", &age);
    gauge("services", "Services that have instances", &snapshots.len());
    gauge("instances", "Instances of all services", &sum(&|snapshot| snapshot.instances().len()));
    let idle = |snapshot: &pointsman_core::Snapshot| {
        snapshot.instances().iter().filter(|instance| !instance.takes_work()).count()
    };
    gauge("instances_drained", "Instances that take no work", &sum(&idle));
    let masterless = |snapshot: &pointsman_core::Snapshot| {
        usize::from(snapshot.master().is_none() && !snapshot.instances().is_empty())
    };
    gauge("services_without_master", "Services that have instances, and no master", &sum(&masterless));
    gauge("services_guarded", "Services whose mass loss is not believed yet", &sum(&|s| usize::from(s.is_guarded())));
    gauge("registry_problems", "Nodes of the registry in which something is wrong", &sum(&|s| s.problems().len()));
    text.counter("claims_expired", "Claims that nobody has released in time", expired);
    let help = "Instances of a service, by whether they take work";
    let mut family = text.family("service_instances", Kind::Gauge, help);
    for snapshot in &snapshots {
        let (service, idle) = (&**snapshot.service(), idle(snapshot));
        family.sample([("service", service), ("status", "passing")], snapshot.instances().len() - idle);
        family.sample([("service", service), ("status", "drained")], idle);
    }
    let mut family = text.family("master_term", Kind::Gauge, "The term of a service's master");
    for snapshot in &snapshots {
        if let Some(term) = snapshot.master().and_then(|master| master.role.term()) {
            family.sample([("service", &**snapshot.service())], term);
        }
    }
}
