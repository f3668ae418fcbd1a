//! Picks for those who cannot hold a claim themselves: it is held here until they give it back, or it expires.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_balance::{Algorithm, Balancer, Candidates, Claim, Endpoints, Explanation, Outcome};
use pointsman_core::ObservedInstance;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::feed::Feed;
use crate::problem::{Kind, Problem};

/// The claims that are out, and the balancers that they come from.
#[derive(Debug)]
pub(crate) struct Claims {
    services: Mutex<HashMap<Arc<str>, Service>>,
    out: Mutex<Out>,
    /// An earlier claim may expire now than the one that is waited for.
    earlier: Notify,
    limit: usize,
    /// With what the id of each claim begins: which agent holds it.
    agent: Box<str>,
}

/// The balancers over one service, by what they choose: they have their endpoints in common, so that each knows the claims and the
/// failures of all.
#[derive(Debug, Default)]
struct Service {
    endpoints: Endpoints,
    balancers: HashMap<(Algorithm, Candidates), Balancer>,
}

/// What a client wants to pick.
#[derive(Debug)]
pub(crate) struct PickRequest<'a> {
    pub(crate) service: &'a str,
    pub(crate) algorithm: Algorithm,
    pub(crate) candidates: Candidates,
    pub(crate) key: Option<&'a str>,
    /// When the claim expires.
    pub(crate) ttl: Duration,
    /// Whether the choice is to be explained.
    pub(crate) explain: bool,
}

/// What was picked.
#[derive(Debug)]
pub(crate) struct Picked {
    /// The id by which the claim is given back.
    pub(crate) claim: String,
    pub(crate) instance: Arc<ObservedInstance>,
    /// What was known of all instances just before.
    pub(crate) explanation: Option<Explanation>,
}

#[derive(Debug, Default)]
struct Out {
    claims: HashMap<u64, (Claim, Instant)>,
    /// In the order in which they expire.
    by_end: BTreeSet<(Instant, u64)>,
    expired: u64,
}

/// The length of a claim's id: 16 hexadecimal digits for the agent, and 16 for the claim.
const ID: usize = 32;
/// Services that have been picked from and have vanished are forgotten when there are this many, and whenever their number has doubled:
/// each may hold a large table.
const SERVICES: usize = 256;

impl Claims {
    /// Claims whose ids begin with the name of this agent among its peers.
    pub(crate) fn new(limit: usize, agent: &str) -> Self {
        Self { services: Mutex::default(), out: Mutex::default(), earlier: Notify::new(), limit, agent: agent.into() }
    }

    /// What a call that has succeeded, or has not, counts as.
    pub(crate) fn outcome(success: bool) -> Outcome {
        if success { Outcome::Success } else { Outcome::Failure }
    }

    /// The agent that holds a claim, by its id. `None`: no agent has given such an id.
    pub(crate) fn agent_of(claim: &str) -> Option<&str> {
        let is_id = claim.len() == ID && claim.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| &claim[..ID / 2])
    }

    /// Whether this agent has given a claim.
    pub(crate) fn has_given(&self, claim: &str) -> bool {
        Self::agent_of(claim) == Some(&self.agent)
    }

    /// Picks an instance.
    pub(crate) fn pick(&self, feed: &Feed, request: &PickRequest<'_>) -> Result<Picked, Problem> {
        let service = request.service;
        let none = |reason: String| Problem::new(Kind::NoInstance, reason);
        // Nothing is kept for services that nobody has heard of.
        let Some(topic) = feed.find(service).filter(|topic| !topic.is_empty()) else {
            return Err(none(format!("service {service} has no instance")));
        };
        let balancer = self.balancer(feed, topic.service(), (request.algorithm, request.candidates))?;
        let explanation = request.explain.then(|| balancer.explain(request.key.unwrap_or_default()));
        let claim = match request.key {
            Some(key) => balancer.pick(key),
            None => balancer.pick_any(),
        };
        let claim = claim.map_err(|error| {
            let unreadable = Problem::unreadable(&topic.snapshot());
            unreadable.unwrap_or_else(|| none(format!("service {service}: {error}")))
        })?;
        let instance = claim.instance().clone();
        let claim_id = self.hold(claim, request.ttl)?;
        Ok(Picked { claim: claim_id, instance, explanation })
    }

    /// Keeps a claim for as long as `ttl`, and returns its id.
    fn hold(&self, claim: Claim, ttl: Duration) -> Result<String, Problem> {
        let (id, end) = (fastrand::u64(..), Instant::now() + ttl);
        let mut out = lock(&self.out);
        if out.claims.len() >= self.limit {
            let detail = format!("{} claims are out; release those that are not needed", out.claims.len());
            return Err(Problem::new(Kind::TooMany, detail));
        }
        let is_first = out.by_end.first().is_none_or(|(first, _)| end < *first);
        out.by_end.insert((end, id));
        out.claims.insert(id, (claim, end));
        drop(out);
        if is_first {
            self.earlier.notify_one();
        }
        Ok(format!("{}{id:016x}", self.agent))
    }

    fn balancer(
        &self,
        feed: &Feed,
        service: &Arc<str>,
        (algorithm, candidates): (Algorithm, Candidates),
    ) -> Result<Balancer, Problem> {
        let mut services = lock(&self.services);
        // Only for a new one: not with each pick, where there are so many.
        let is_due = services.len() >= SERVICES && services.len().is_power_of_two();
        if is_due && !services.contains_key(service) {
            services.retain(|service, _| feed.find(service).is_some_and(|topic| !topic.is_empty()));
        }
        let Service { endpoints, balancers } = services.entry(service.clone()).or_default();
        if let Some(balancer) = balancers.get(&(algorithm, candidates)) {
            return Ok(balancer.clone());
        }
        let of_all = feed.directory().service(service);
        let view =
            of_all.ok_or_else(|| Problem::new(Kind::Internal, "the directory does not follow this service"))?.view();
        let builder = Balancer::builder(view).algorithm(algorithm).candidates(candidates).endpoints(endpoints.clone());
        Ok(balancers.entry((algorithm, candidates)).or_insert(builder.build()).clone())
    }

    /// Gives a claim back, and says how the call went.
    pub(crate) fn release(&self, id: &str, outcome: Option<Outcome>) -> Result<(), Problem> {
        let gone = || Problem::new(Kind::NoClaim, "the claim has been released, or has expired, or never was");
        let number = id.strip_prefix(&*self.agent).and_then(|number| u64::from_str_radix(number, 16).ok());
        let number = number.filter(|_| self.has_given(id)).ok_or_else(gone)?;
        let mut out = lock(&self.out);
        let (claim, end) = out.claims.remove(&number).ok_or_else(gone)?;
        out.by_end.remove(&(end, number));
        drop(out);
        if let Some(outcome) = outcome {
            claim.report(outcome);
        }
        Ok(())
    }

    /// Ends claims that nobody has given back, for ever.
    pub(crate) async fn run(&self) {
        loop {
            let next = lock(&self.out).by_end.first().copied();
            match next {
                None => self.earlier.notified().await,
                Some((end, _)) => tokio::select! {
                    () = tokio::time::sleep_until(end) => self.expire(Instant::now()),
                    () = self.earlier.notified() => {}
                },
            }
        }
    }

    fn expire(&self, now: Instant) {
        let mut ended = Vec::new();
        let mut out = lock(&self.out);
        while let Some((end, id)) = out.by_end.first().copied().filter(|(end, _)| *end <= now) {
            out.by_end.remove(&(end, id));
            ended.extend(out.claims.remove(&id));
            out.expired += 1;
        }
        drop(out);
        // Claims are let go of outside the lock.
        drop(ended);
    }

    /// How many services there are balancers for.
    #[cfg(test)]
    pub(crate) fn services(&self) -> usize {
        lock(&self.services).len()
    }

    /// How many are out, and how many have expired so far.
    pub(crate) fn count(&self) -> (usize, u64) {
        let out = lock(&self.out);
        (out.claims.len(), out.expired)
    }

    /// How many are out at each instance, as the data of a `load` event; only those that have any.
    pub(crate) fn in_flight(&self) -> String {
        let services: Vec<_> =
            lock(&self.services).iter().map(|(name, service)| (name.clone(), service.endpoints.clone())).collect();
        let mut in_flight = std::collections::BTreeMap::new();
        for (name, endpoints) in services {
            let busy = endpoints.all_in_flight().into_iter().filter(|(_, count)| *count > 0);
            let busy: std::collections::BTreeMap<String, usize> = busy.map(|(code, n)| (code.to_string(), n)).collect();
            if !busy.is_empty() {
                in_flight.insert(name.to_string(), busy);
            }
        }
        serde_json::json!({ "in_flight": in_flight }).to_string()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left the maps half changed: each step leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
