//! The routes, ready for use: what a request is to be done with, and which instance takes it. Never changed: a reload makes another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use pointsman_balance::{Balancer, Candidates, Claim, Endpoints, PickError, RetryBudget, Standing};
use pointsman_core::{ObservedInstance, ServiceId, View};
use pointsman_net::tls::{self, TlsError};
use tokio::time::Instant;

use crate::error::Error;
use crate::gate::{Gate, Permits, Waiting};
use crate::health::{Checker, Health, Rule};
use crate::http1::parse::Bounds;
use crate::instance::dial::{NoConnection, Secret, dial};
use crate::instance::http2::Connections;
use crate::instance::pool::Pool;
use crate::instance::{Connection, Http1};
use crate::matching::Matcher;
use crate::metrics::{Instances, RouteMetrics, ServiceMetrics};
use crate::proxy::Views;
use crate::settings::{
    self, AccessLog, Action, Answer, Forwarded, Limits, Network, Pass, Protocol, RouteRole, ServiceTls, Settings,
};

/// Everything that a reload can change.
#[derive(Debug)]
pub(crate) struct Table {
    /// One a worker: they would wait for one another's scratch memory.
    pub(crate) matchers: Vec<Matcher>,
    pub(crate) lines: Vec<Line>,
    services: BTreeMap<ServiceId, Arc<Service>>,
    pub(crate) limits: Limits,
    pub(crate) trusted: Vec<Network>,
    pub(crate) forwarded: Forwarded,
    pub(crate) reasons: bool,
    pub(crate) access_log: AccessLog,
    pub(crate) allow_addresses: Vec<Network>,
}

/// One route.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) metrics: Arc<RouteMetrics>,
    pub(crate) action: LineAction,
}

#[derive(Debug)]
pub(crate) enum LineAction {
    Pass(Box<Passing>),
    Answer(Answer),
}

/// How requests are passed on.
#[derive(Debug)]
pub(crate) struct Passing {
    pub(crate) pass: Pass,
    pub(crate) path_prefix: Option<String>,
    pub(crate) target: Target,
    /// Each with the percentage at which its share ends.
    pub(crate) split: Vec<(u8, Target)>,
    pub(crate) mirror: Option<(Target, u8)>,
    pub(crate) gate: Option<Arc<Gate>>,
    /// The limit of the table before, which is none any more: requests wait there.
    no_longer: Option<Arc<Gate>>,
    pub(crate) waiting: Arc<Waiting>,
    /// Whether the last request of a share found no instance there: told once, not with each.
    pub(crate) is_astray: AtomicBool,
    pub(crate) budget: Arc<RetryBudget>,
}

/// A service, as a route leads to it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) service: Arc<Service>,
    pub(crate) balancer: Balancer,
}

/// A service, whichever route leads to it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) settings: settings::Service,
    /// Its instances.
    pub(crate) view: View,
    health: Option<Arc<Health>>,
    /// What is known of them. All routes share it, and it outlives a reload.
    endpoints: Endpoints,
    /// One a worker.
    pub(crate) pools: Vec<Pool>,
    /// The same for HTTP/2.
    pub(crate) connections: Vec<Connections>,
    pub(crate) secret: Secret,
    pub(crate) permits: Arc<Permits>,
    pub(crate) metrics: Arc<ServiceMetrics>,
}

/// An instance as the proxy uses it for a request; counted as in flight while this is held.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Arc<str>,
    claim: Claim,
}

impl Table {
    /// Prepares routes and services. What has not changed since `before` is taken over with what it has counted and the connections that
    /// it has. Nothing that both share is changed before [`Table::activate`].
    pub(crate) fn new(
        settings: &Settings,
        views: &Views,
        before: Option<&Table>,
        workers: usize,
        checker: &Checker,
    ) -> Result<Self, Error> {
        let matcher = Matcher::new(&settings.routes).map_err(|problem| Error::Invalid(vec![problem]))?;
        let mut services: BTreeMap<ServiceId, Arc<Service>> = BTreeMap::new();
        for route in &settings.routes {
            let Action::Pass(pass) = &route.action else { continue };
            for id in pass.services() {
                if services.contains_key(&id) {
                    continue;
                }
                let view = views.get(&id).ok_or_else(|| not_followed(&id))?;
                let told = settings.services.get(&id.name).cloned().unwrap_or_default();
                let old = before.and_then(|table| table.services.get(&id));
                let service = Service::new(&id, told, view, old, workers, (checker, &settings.allow_addresses))?;
                services.insert(id, service);
            }
        }
        let known = before.map(Table::by_name).unwrap_or_default();
        let lines = settings.routes.iter().map(|route| {
            let service = match &route.action {
                Action::Answer(_) => ServiceId::from(""),
                Action::Pass(pass) => pass.service_id(&pass.service),
            };
            let old = known.get(&(route.name.as_str(), &service));
            let action = match &route.action {
                Action::Answer(answer) => LineAction::Answer(answer.clone()),
                Action::Pass(pass) => {
                    let old = old.and_then(|line| line.passing());
                    let passing = Passing::new(pass, route.when.path_prefix.clone(), &services, old);
                    LineAction::Pass(Box::new(passing))
                }
            };
            let new = || Arc::new(RouteMetrics::new(route.name.as_str().into(), service.clone(), workers));
            Line { metrics: old.map_or_else(new, |line| line.metrics.clone()), action }
        });
        let lines = lines.collect();
        Ok(Self {
            matchers: vec![matcher; workers],
            lines,
            services,
            limits: settings.limits,
            trusted: settings.trusted.clone(),
            forwarded: settings.forwarded,
            reasons: settings.reasons,
            access_log: settings.access_log,
            allow_addresses: settings.allow_addresses.clone(),
        })
    }

    /// Lets the settings hold for what this table shares with the one before: limits, also for requests that wait, ejection, checks.
    pub(crate) fn activate(&self) {
        self.services.values().for_each(|service| service.activate());
        self.lines.iter().filter_map(Line::passing).for_each(Passing::activate);
    }

    /// Ends the checks that do not go on in the table that has taken this one's place, although requests may hold on to this for long:
    /// two that ask differently would contradict each other.
    pub(crate) fn retire(&self, next: &Table) {
        for (id, service) in &self.services {
            let Some(health) = &service.health else { continue };
            let same = next.services.get(id).and_then(|service| service.health.as_ref());
            if same.is_none_or(|same| !Arc::ptr_eq(same, health)) {
                health.end();
            }
        }
    }

    /// The routes by their names and their services.
    fn by_name(&self) -> HashMap<(&str, &ServiceId), &Line> {
        self.lines.iter().map(|line| ((&**line.metrics.name(), line.metrics.service()), line)).collect()
    }

    /// Each once, though routes may share a name.
    pub(crate) fn route_metrics(&self) -> Vec<Arc<RouteMetrics>> {
        let mut all: Vec<Arc<RouteMetrics>> = self.lines.iter().map(|line| line.metrics.clone()).collect();
        all.sort_by_key(|metrics| Arc::as_ptr(metrics).addr());
        all.dedup_by(|one, other| Arc::ptr_eq(one, other));
        all.sort_by_key(|metrics| metrics.name().clone());
        all
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// How it stands with the instances of each service.
    pub(crate) fn instances(&self) -> Vec<Instances> {
        let passing = self.lines.iter().filter_map(Line::passing);
        // The balancers of a service share what they know of it.
        let targets: HashMap<&ServiceId, &Target> =
            passing.flat_map(Passing::targets).map(|target| (&target.service.id, target)).collect();
        self.services.values().map(|service| service.instances(targets.get(&service.id).copied())).collect()
    }

    /// Closes what has waited too long at one worker. How many connections still wait.
    pub(crate) fn sweep(&self, worker: usize, cx: &mut Context<'_>, now: Instant) -> usize {
        self.services.values().map(|service| service.sweep(worker, cx, now)).sum()
    }
}

impl Line {
    fn passing(&self) -> Option<&Passing> {
        match &self.action {
            LineAction::Pass(passing) => Some(passing),
            LineAction::Answer(_) => None,
        }
    }
}

/// How the instances of a service are called with TLS.
fn secret(id: &ServiceId, tls: &ServiceTls, protocol: Protocol) -> Result<Secret, Error> {
    let alpn = match protocol {
        Protocol::Http1 => tls::HTTP_1_1,
        Protocol::Http2 => tls::HTTP_2,
    };
    let files = tls.files();
    let failed = |source: TlsError| Error::Tls { key: format!("services.{id}.tls.{}", source.file.setting()), source };
    Ok(Secret::new(files.load(&[alpn]).map_err(failed)?, tls.name.clone()))
}

fn not_followed(id: &ServiceId) -> Error {
    let reason = format!("service {id} is not followed");
    Error::Invalid(vec![settings::Invalid { key: "route".to_owned(), reason }])
}

impl Service {
    fn new(
        id: &ServiceId,
        settings: settings::Service,
        view: &View,
        old: Option<&Arc<Service>>,
        workers: usize,
        (checker, allowed): (&Checker, &[Network]),
    ) -> Result<Arc<Self>, Error> {
        let rule = Rule::of(&settings, allowed);
        let before = old.and_then(|old| old.health.as_ref());
        let of_same_view = |_: &&Arc<Health>| old.is_some_and(|old| old.view.is_same(view));
        let same_health =
            before.filter(|health| rule.as_ref().is_some_and(|rule| health.holds(rule))).filter(of_same_view);
        // Certificates may be others under the same names.
        let is_same = |old: &&Arc<Service>| {
            old.settings == settings
                && old.settings.tls.is_none()
                && old.view.is_same(view)
                && (rule.is_none() || same_health.is_some())
        };
        if let Some(old) = old.filter(is_same) {
            return Ok(old.clone());
        }
        let endpoints = old.map_or_else(|| Endpoints::with_ejection(settings.ejection), |old| old.endpoints.clone());
        let permits = old.map_or_else(|| Arc::new(Permits::new(settings.max_in_flight)), |old| old.permits.clone());
        let secret = match &settings.tls {
            None => Secret::default(),
            Some(tls) => secret(id, tls, settings.protocol)?,
        };
        let metrics = old.map_or_else(|| Arc::new(ServiceMetrics::new(workers)), |old| old.metrics.clone());
        let health = match (rule, same_health) {
            (_, Some(same)) => Some(same.clone()),
            (None, None) => None,
            (Some(rule), None) => {
                let before = before.map(Arc::as_ref);
                let told = (&endpoints, metrics.clone());
                let health = Health::prepare(checker, rule, secret.clone(), view, told, before);
                Some(Arc::new(health.map_err(Error::Thread)?))
            }
        };
        Ok(Arc::new(Self {
            id: id.clone(),
            view: view.clone(),
            health,
            endpoints,
            pools: (0..workers).map(|_| Pool::default()).collect(),
            connections: (0..workers).map(|_| Connections::default()).collect(),
            secret,
            permits,
            metrics,
            settings,
        }))
    }

    fn activate(&self) {
        self.endpoints.set_ejection(self.settings.ejection);
        self.endpoints.set_checked(self.health.is_some());
        self.permits.set_most(self.settings.max_in_flight);
        if let Some(health) = &self.health {
            health.begin();
        }
    }
}

impl Service {
    /// A connection that can be used at once, if there is one.
    pub(crate) fn waiting(&self, worker: usize, address: &str) -> Option<Connection> {
        match self.settings.protocol {
            Protocol::Http1 => self.pools[worker].take(address).map(Connection::Http1),
            Protocol::Http2 => {
                let connection = self.connections[worker].get(address, &mut Context::from_waker(Waker::noop()))?;
                Some(Connection::Http2(Box::new(connection)))
            }
        }
    }

    /// A new connection. Takes as long as it takes.
    pub(crate) async fn connect(
        &self,
        worker: usize,
        address: &Arc<str>,
        allowed: &[Network],
    ) -> Result<Connection, NoConnection> {
        let io = dial(address, &self.secret, allowed).await?;
        Ok(match self.settings.protocol {
            Protocol::Http1 => Connection::Http1(Box::new(Http1::new(io))),
            Protocol::Http2 => {
                let begun = self.connections[worker].begin(address, io).await.map_err(NoConnection::Failed)?;
                Connection::Http2(Box::new(begun))
            }
        })
    }

    /// Takes one back after a request; whoever calls this sees to it that the sweep goes on.
    pub(crate) fn give_back(&self, worker: usize, address: &Arc<str>, connection: Connection, now: Instant) {
        match connection {
            Connection::Http1(connection) => self.pools[worker].give_back(address, connection, now),
            // Others are on it already.
            Connection::Http2(_) => {}
        }
    }

    fn instances(&self, target: Option<&Target>) -> Instances {
        let checks = self.health.as_ref().map(|_| {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (read(&self.metrics.checks_passed), read(&self.metrics.checks_failed))
        });
        let registered = self.view.load().instances().len();
        let (passing, failing) = self.health.as_ref().map_or((registered, 0), |health| health.counts());
        let considered = target.map(|target| target.balancer.explain(b"").instances).unwrap_or_default();
        Instances {
            service: self.id.clone(),
            checks,
            passing,
            failing,
            unknown: registered.saturating_sub(passing + failing),
            ejected: considered.iter().filter(|one| matches!(one.standing, Standing::Ejected { .. })).count(),
            in_flight: self.endpoints.all_in_flight(),
        }
    }

    fn sweep(&self, worker: usize, cx: &mut Context<'_>, now: Instant) -> usize {
        let waiting = self.pools[worker].sweep(cx, now);
        let connections = &self.connections[worker];
        if connections.is_empty() {
            return waiting;
        }
        let snapshot = self.view.load();
        let there: HashSet<&str> = snapshot.instances().iter().filter_map(|one| one.address.as_deref()).collect();
        waiting + connections.sweep(cx, |address| there.contains(address))
    }
}

impl Passing {
    /// Takes limits that are the same over from `old` with what they have counted: what is under way counts against them until it
    /// ends, and a reload gives nobody a second budget.
    fn new(
        pass: &Pass,
        path_prefix: Option<String>,
        services: &BTreeMap<ServiceId, Arc<Service>>,
        old: Option<&Passing>,
    ) -> Self {
        let target = |name: &Arc<str>| Target::new(&services[&pass.service_id(name)], pass);
        let mut end = 0;
        let split = pass.split.iter().map(|(name, percent)| {
            end += percent;
            (end, target(name))
        });
        let new = |most| Arc::new(Gate::new(most));
        let gate = pass.max_in_flight.map(|most| old.and_then(|old| old.gate.clone()).unwrap_or_else(|| new(most)));
        let no_longer = old.and_then(|old| old.gate.clone()).filter(|_| gate.is_none());
        let waiting = old.map(|old| old.waiting.clone()).unwrap_or_default();
        let budget = old.filter(|old| old.pass.retry_budget == pass.retry_budget).map(|old| old.budget.clone());
        Self {
            pass: pass.clone(),
            path_prefix,
            target: target(&pass.service),
            split: split.collect(),
            mirror: pass.mirror.as_ref().map(|(name, percent)| (target(name), *percent)),
            gate,
            no_longer,
            waiting,
            is_astray: AtomicBool::new(false),
            budget: budget.unwrap_or_else(|| Arc::new(RetryBudget::new(pass.retry_budget))),
        }
    }

    fn activate(&self) {
        if let Some(gate) = &self.gate {
            gate.set_most(self.pass.max_in_flight);
        }
        if let Some(gate) = &self.no_longer {
            gate.set_most(None);
        }
    }

    /// The service of the instance with this code, if it has a share of the requests, and the instance takes some.
    pub(crate) fn home(&self, code: &str) -> Option<&Target> {
        if self.split.is_empty() {
            return None;
        }
        let starts = std::iter::once(0).chain(self.split.iter().map(|(end, _)| *end));
        let shares =
            self.split.iter().zip(starts).filter(|((end, _), start)| end > start).map(|((_, target), _)| target);
        let rest = Some(&self.target).filter(|_| self.split.last().is_none_or(|(end, _)| *end < 100));
        let is_of = |instance: &Arc<ObservedInstance>| *instance.code == *code && instance.takes_work();
        rest.into_iter().chain(shares).find(|target| target.service.view.load().instances().iter().any(is_of))
    }

    /// Notes whether a request of a share finds no instance there, and says so when that changes. Whether it has to go home.
    pub(crate) fn goes_astray(&self, target: &Target, finds_none: bool) -> bool {
        if self.split.is_empty() || std::ptr::eq(target, &self.target) {
            return false;
        }
        if self.is_astray.load(Ordering::Relaxed) != finds_none {
            self.is_astray.store(finds_none, Ordering::Relaxed);
            let (share, home) = (&target.service.id, &self.target.service.id);
            if finds_none {
                tracing::warn!(%share, %home, "nobody can serve a share: its requests go home");
            } else {
                tracing::info!(%share, "a share is served again");
            }
        }
        finds_none
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        let split = self.split.iter().map(|(_, target)| target);
        std::iter::once(&self.target).chain(split).chain(self.mirror.iter().map(|(target, _)| target))
    }

    /// The service that this request is for; `draw` is 0 to 99.
    pub(crate) fn target(&self, draw: u8) -> &Target {
        self.split.iter().find(|(end, _)| draw < *end).map_or(&self.target, |(_, target)| target)
    }
}

impl Target {
    fn new(service: &Arc<Service>, pass: &Pass) -> Self {
        let balancer = Balancer::builder(service.view.clone())
            .algorithm(pass.algorithm)
            .candidates(pass.role.candidates())
            .slow_start(service.settings.slow_start)
            .endpoints(service.endpoints.clone())
            .build();
        Self { service: service.clone(), balancer }
    }

    /// Chooses the instance that takes a request by the algorithm; never one of `tried`, nor of those that are `full`.
    pub(crate) fn choose(
        &self,
        key: Option<&[u8]>,
        tried: &[Arc<str>],
        full: &[Arc<str>],
    ) -> Result<Endpoint, PickError> {
        let claim = match (tried, full, key) {
            ([], [], Some(key)) => self.balancer.pick(key),
            ([], [], None) => self.balancer.pick_any(),
            (tried, full, Some(key)) => self.balancer.pick_with_room(key, tried, full),
            // Any, as above: not the same for all.
            (tried, full, None) => self.balancer.pick_with_room(fastrand::u64(..).to_le_bytes(), tried, full),
        };
        claim.map(Endpoint::from)
    }

    /// The instance with this code, if it serves as well as any other.
    pub(crate) fn stay(&self, code: &str) -> Option<Endpoint> {
        self.balancer.pick_code(code).map(Endpoint::from)
    }

    /// Whether only the master will do.
    pub(crate) fn wants_master(&self) -> bool {
        self.balancer.candidates() == Candidates::Master
    }

    /// Whether the instance with this code is only away for now: clients that stay with it are to come back.
    pub(crate) fn may_return(&self, code: &str) -> bool {
        self.service.view.load().find(code).is_some_and(|instance| instance.is_guarded() && instance.takes_work())
    }
}

impl RouteRole {
    fn candidates(self) -> Candidates {
        match self {
            RouteRole::Normal => Candidates::Normals,
            RouteRole::Master => Candidates::Master,
        }
    }
}

impl From<Claim> for Endpoint {
    fn from(claim: Claim) -> Self {
        Self { address: claim.instance().address.clone().unwrap_or_default(), claim }
    }
}

impl Endpoint {
    pub(crate) fn instance(&self) -> &Arc<ObservedInstance> {
        self.claim.instance()
    }

    pub(crate) fn code(&self) -> &Arc<str> {
        self.claim.code()
    }

    /// Says how it went.
    pub(crate) fn report(&self, outcome: pointsman_balance::Outcome) {
        self.claim.report(outcome);
    }
}

impl Limits {
    /// What a head may be.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { bytes: self.head, fields: self.fields }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::Snapshot;

    use super::*;
    use crate::settings::Route;

    /// A table with one route of this name.
    fn table(name: &str, before: Option<&Table>, change: impl FnOnce(&mut Pass)) -> Table {
        let views = Views::from([("a", None), ("b", None), ("a", Some("other"))].map(|(name, registry)| {
            let id = ServiceId::new(registry.map(Into::into), name);
            (id, View::fixed(Snapshot::empty(name)))
        }));
        let mut route = Route::new("^", "a");
        name.clone_into(&mut route.name);
        if let Action::Pass(pass) = &mut route.action {
            (pass.max_in_flight, pass.retry_budget) = (Some(1), 0);
            change(pass);
        }
        let settings = Settings { routes: vec![route], ..Settings::new() };
        let table = Table::new(&settings, &views, before, 1, &Checker::default()).unwrap();
        table.activate();
        table
    }

    fn passing(table: &Table) -> &Passing {
        table.lines[0].passing().unwrap()
    }

    #[test]
    fn a_reload_neither_doubles_a_limit_nor_resets_a_budget() {
        let first = table("r", None, |_| {});
        let (now, _inside) = (std::time::Instant::now(), passing(&first).gate.as_ref().unwrap().try_enter().unwrap());
        while passing(&first).budget.withdraw(now) {}
        let may_enter = |table: &Table| passing(table).gate.as_ref().unwrap().try_enter().is_some();
        let second = table("r", Some(&first), |pass| pass.retries = 9);
        assert!(!may_enter(&second) && !passing(&second).budget.withdraw(now));
        assert!(Arc::ptr_eq(&passing(&first).waiting, &passing(&second).waiting));
        // What is another limit, or another route's, begins anew.
        let other_limit = table("r", Some(&second), |pass| pass.max_in_flight = Some(2));
        assert!(may_enter(&other_limit) && !passing(&other_limit).budget.withdraw(now));
        let other_budget = table("r", Some(&second), |pass| pass.retry_budget = 20);
        assert!(!may_enter(&other_budget) && passing(&other_budget).budget.withdraw(now));
        for other in [
            table("s", Some(&second), |_| {}),
            table("r", Some(&second), |pass| pass.service = "b".into()),
            table("r", Some(&second), |pass| pass.registry = Some("other".into())),
        ] {
            assert!(may_enter(&other) && passing(&other).budget.withdraw(now));
        }
        assert!(passing(&table("r", Some(&second), |pass| pass.max_in_flight = None)).gate.is_none());
    }
}
