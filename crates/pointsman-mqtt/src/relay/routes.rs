//! Routes, ready for use: which message is for which service, and which instance takes it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pointsman_balance::{Balancer, Claim, Endpoints, PickError};
use pointsman_core::{Instance, ObservedInstance, ServiceId, View};
use regex::RegexSet;

use super::metrics::{Metrics, RouteMetrics};
use super::settings::{self, Invalid, RouteRole, Settings, compile};

/// Where the instances of services are looked up.
pub type Views = HashMap<ServiceId, View>;

/// All routes, compiled.
#[derive(Debug)]
pub(super) struct Routes {
    set: RegexSet,
    routes: Vec<Arc<Route>>,
    views: Views,
    /// One a service: its instances' claims in flight are counted over all routes, and outlive a reload.
    endpoints: HashMap<ServiceId, Endpoints>,
    /// The codes of all instances of the services.
    known: HashSet<Arc<str>>,
    generations: Vec<u64>,
}

/// One route, with what it needs to be used.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) settings: settings::Route,
    /// The service that its messages are for.
    pub(super) service: ServiceId,
    pub(super) metrics: RouteMetrics,
    view: View,
    balancer: Balancer,
    /// Whether the last message found nobody: told once, not with each message.
    deserted: AtomicBool,
}

/// An instance that is to take a message; counted as in flight while this is held.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) instance: Arc<ObservedInstance>,
    /// `None` for one that was chosen before a restart and may not be chosen any more.
    claim: Option<Claim>,
}

impl From<Claim> for Endpoint {
    fn from(claim: Claim) -> Self {
        Self { instance: claim.instance().clone(), claim: Some(claim) }
    }
}

impl Endpoint {
    /// An instance of which only the code is known.
    pub(super) fn unclaimed(service: &str, code: &str) -> Self {
        Self { instance: Arc::new(ObservedInstance::from(Instance::with_code(service, code))), claim: None }
    }

    pub(super) fn code(&self) -> &Arc<str> {
        &self.instance.code
    }

    /// Says how it went.
    pub(super) fn report(&self, outcome: pointsman_balance::Outcome) {
        if let Some(claim) = &self.claim {
            claim.report(outcome);
        }
    }
}

impl Routes {
    /// Compiles the routes of `settings`. Endpoints of the routes before are taken over.
    pub(super) fn new(
        settings: &Settings,
        views: Views,
        metrics: &Metrics,
        before: Option<&Routes>,
    ) -> Result<Self, Invalid> {
        let set = compile(&settings.routes)?;
        let mut endpoints = before.map(|routes| routes.endpoints.clone()).unwrap_or_default();
        let mut routes = Vec::new();
        for (index, route) in settings.routes.iter().enumerate() {
            let service = route.service_id();
            let view = views.get(&service).cloned().ok_or_else(|| Invalid {
                key: format!("route.{index}.service"),
                reason: format!("service {service} is not followed"),
            })?;
            let endpoints = endpoints.entry(service.clone()).or_default().clone();
            let balancer = Balancer::builder(view.clone())
                .algorithm(route.algorithm)
                .candidates(route.role.candidates())
                .endpoints(endpoints)
                .build();
            let metrics = metrics.route(route);
            let deserted = AtomicBool::new(false);
            routes.push(Arc::new(Route { settings: route.clone(), service, metrics, view, balancer, deserted }));
        }
        endpoints.retain(|service, _| views.contains_key(service));
        let mut it = Self { set, routes, views, endpoints, known: HashSet::new(), generations: Vec::new() };
        it.refresh();
        Ok(it)
    }

    /// Looks whether instances have come or gone; whether any have.
    pub(super) fn refresh(&mut self) -> bool {
        let generations: Vec<u64> = self.views.values().map(View::generation).collect();
        if generations == self.generations {
            return false;
        }
        self.generations = generations;
        self.known.clear();
        for view in self.views.values() {
            self.known.extend(view.load().instances().iter().map(|instance| instance.code.clone()));
        }
        true
    }

    /// Whether some instance has this code.
    pub(super) fn knows(&self, code: &str) -> bool {
        self.known.contains(code)
    }

    /// The first route that matches.
    pub(super) fn find(&self, topic: &str) -> Option<&Arc<Route>> {
        // A set has to try all expressions to the end; a few are tried faster one by one.
        self.set.matches(topic).iter().next().map(|index| &self.routes[index])
    }

    /// Whether the instance of a route's service with this code is registered. A route from before a reload may look at a
    /// service that is followed no longer, or anew.
    pub(super) fn has(&self, route: &Route, code: &str) -> bool {
        self.views.get(&route.service).unwrap_or(&route.view).load().find(code).is_some()
    }

    /// Whether the instance of a route's service with this code is gone or guarded, while another one that the route may ask, and that is
    /// none of `tried`, is registered and takes work.
    pub(super) fn is_replaced(&self, route: &Route, code: &str, tried: &[Arc<str>]) -> bool {
        let snapshot = self.views.get(&route.service).unwrap_or(&route.view).load();
        let wants_master = route.settings.role == RouteRole::Master;
        let serves = |other: &&Arc<ObservedInstance>| {
            let fits = !wants_master || other.role.is_master();
            fits && !other.is_guarded() && other.takes_work() && !tried.contains(&other.code)
        };
        snapshot.find(code).is_none_or(|instance| instance.is_guarded())
            && snapshot.instances().iter().any(|other| serves(&other))
    }

    /// The same route as it is now; one that is gone as it was.
    pub(super) fn current(&self, route: &Arc<Route>) -> Arc<Route> {
        let same = |other: &&Arc<Route>| {
            (&other.settings.pattern, &other.service) == (&route.settings.pattern, &route.service)
        };
        self.routes.iter().find(same).unwrap_or(route).clone()
    }

    /// The route of a request that was under way before a restart, of which the service's name and the instance's code are known: one
    /// whose service has such an instance, where there are several of that name.
    pub(super) fn of_kept(&self, service: &str, code: &str) -> Option<&Arc<Route>> {
        let mut named = self.routes.iter().filter(|route| *route.service.name == *service).peekable();
        let first = named.peek().copied();
        named.find(|route| self.has(route, code)).or(first)
    }

    /// All routes.
    pub(super) fn all(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

impl Route {
    /// Chooses who takes a message, by the one ordered choice (`docs/choosing.md`): `sticky` if that instance serves as well as any
    /// other, otherwise by the algorithm; never one of `tried`.
    pub(super) fn choose(&self, key: &[u8], sticky: Option<&str>, tried: &[Arc<str>]) -> Result<Endpoint, PickError> {
        let endpoint = sticky.and_then(|code| self.balancer.pick_code(code)).map_or_else(|| self.pick(key, tried), Ok);
        let deserted = endpoint.is_err();
        // That all others have been tried says nothing of the route.
        let says_something = !deserted || tried.is_empty();
        if says_something && self.deserted.load(Ordering::Relaxed) != deserted {
            self.deserted.store(deserted, Ordering::Relaxed);
            let (route, service) = (&self.settings.pattern, &self.service);
            match &endpoint {
                Err(error) if deserted => tracing::warn!(route, %service, %error, "route without instance"),
                _ => tracing::info!(route, %service, "route has an instance again"),
            }
        }
        endpoint.map(Endpoint::from)
    }

    /// The instance that had been chosen before a restart: what has been sent to it cannot be taken back.
    pub(super) fn again(&self, code: &str) -> Endpoint {
        self.balancer.pick_code(code).map_or_else(|| Endpoint::unclaimed(&self.settings.service, code), Endpoint::from)
    }

    /// Whether a message that cannot be given to an instance waits for one: it wants the master, and there was one that takes work
    /// until not longer ago than `timeout`; or the master has not taken this very message, and so is probably about to be replaced.
    pub(super) fn awaits_master(&self, error: &PickError, timeout: Duration, now: Instant) -> bool {
        let wants_master = self.settings.role == RouteRole::Master && !timeout.is_zero();
        wants_master && (matches!(error, PickError::AllExcluded { .. }) || error.awaits_master(timeout, now))
    }

    fn pick(&self, key: &[u8], tried: &[Arc<str>]) -> Result<Claim, PickError> {
        if tried.is_empty() { self.balancer.pick(key) } else { self.balancer.pick_excluding(key, tried) }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_balance::{Algorithm, Outcome};
    use pointsman_core::{Role, Snapshot, Term};

    use super::*;

    /// The master `m` and the normal instance `n`; the first route asks for the master, the second for a normal instance.
    fn routes() -> Routes {
        let instances = [("m", Role::Master(Term(1))), ("n", Role::Normal)].map(|(code, role)| {
            let mut instance = ObservedInstance::from(Instance::new("s").code(code));
            instance.role = role;
            Arc::new(instance)
        });
        let views = Views::from([("s".into(), View::fixed(Snapshot::new("s", 1, instances.to_vec())))]);
        let mut settings = Settings::new();
        settings.routes = ["^/master", "^/normal"].map(|pattern| settings::Route::new(pattern, "s")).to_vec();
        settings.routes[0].role = RouteRole::Master;
        settings.routes[0].algorithm = Algorithm::LeastConnections;
        Routes::new(&settings, views, &Metrics::new(), None).unwrap()
    }

    #[test]
    fn the_master_is_claimed_like_any_other() {
        let routes = routes();
        let (master, endpoints) = (routes.find("/master").unwrap(), &routes.endpoints[&"s".into()]);
        let held: Vec<_> = (0..3).map(|_| master.choose(b"", None, &[]).unwrap()).collect();
        assert!(held.iter().all(|endpoint| &**endpoint.code() == "m"));
        assert_eq!((endpoints.in_flight("m"), endpoints.in_flight("n")), (3, 0));
        drop(held);
        assert_eq!(endpoints.in_flight("m"), 0);
    }

    #[test]
    fn a_service_of_another_registry_is_another_service() {
        let view =
            |code: &str| View::fixed(Snapshot::new("s", 1, vec![Arc::new(Instance::with_code("s", code).into())]));
        let elsewhere = ServiceId::new(Some("zookeeper://h/p".into()), "s");
        let views = Views::from([("s".into(), view("here")), (elsewhere.clone(), view("there"))]);
        let mut settings = Settings::new();
        settings.routes = ["^/here", "^/there"].map(|pattern| settings::Route::new(pattern, "s")).to_vec();
        settings.routes[1].registry = elsewhere.registry.clone();
        let routes = Routes::new(&settings, views, &Metrics::new(), None).unwrap();
        let [here, there] = ["/here", "/there"].map(|topic| routes.find(topic).unwrap());
        let _held = [here, there].map(|route| route.choose(b"", None, &[]).unwrap());
        assert_eq!(
            (routes.endpoints[&"s".into()].in_flight("here"), routes.endpoints[&elsewhere].in_flight("there")),
            (1, 1)
        );
        assert!(routes.knows("here") && routes.knows("there") && !routes.has(here, "there"));
        // A journal has only the name.
        let of_kept = |code: &str| routes.of_kept("s", code).map(|route| &*route.settings.pattern);
        assert_eq!(["here", "there", "gone"].map(of_kept), ["^/here", "^/there", "^/here"].map(Some));
        assert!(routes.of_kept("t", "here").is_none());
    }

    #[test]
    fn outcomes_of_a_route_to_the_master_count() {
        let routes = routes();
        let (master, normal) = (routes.find("/master").unwrap(), routes.find("/normal").unwrap());
        assert_eq!(&**normal.choose(b"", Some("m"), &[]).unwrap().code(), "m");
        for _ in 0..5 {
            master.choose(b"", None, &[]).unwrap().report(Outcome::Failure);
        }
        assert_eq!(&**normal.choose(b"", Some("m"), &[]).unwrap().code(), "n", "the master is ejected");
        assert_eq!(&**master.choose(b"", None, &[]).unwrap().code(), "m", "there is no other");
    }

    #[test]
    fn where_all_normal_instances_have_been_tried_the_master_stands_in() {
        let routes = routes();
        let normal = routes.find("/normal").unwrap();
        assert_eq!(&**normal.choose(b"", None, &[]).unwrap().code(), "n");
        assert_eq!(&**normal.choose(b"", None, &["n".into()]).unwrap().code(), "m");
        assert!(normal.choose(b"", None, &["n".into(), "m".into()]).is_err());
    }
}
