//! Callers: a steady stream of calls, each to an instance that a balancer picks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman::{Algorithm, Balancer, Claim, Loads, Outcome, Service};
use tokio::task::JoinSet;

use crate::dev::board::Board;
use crate::dev::fleet::Fleet;
use crate::dev::messages::{Messages, TOPIC};
use crate::dev::sample;

/// Between two calls of one service.
const PAUSE: Duration = Duration::from_millis(50);

/// The callers of all services. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Traffic {
    shared: Arc<Shared>,
    _callers: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    services: Vec<Service>,
    messages: Arc<Messages>,
    /// One a service: the claims in flight outlive a change of the algorithm.
    loads: Vec<Loads>,
    balancers: Mutex<Balancers>,
    board: Arc<Mutex<Board>>,
}

#[derive(Debug)]
struct Balancers {
    algorithm: Algorithm,
    of_services: Vec<Balancer>,
}

/// Starts the callers.
pub(super) fn start(fleet: &Fleet, messages: &Arc<Messages>, board: &Arc<Mutex<Board>>) -> Traffic {
    let services = fleet.services().to_vec();
    let loads: Vec<_> = services.iter().map(|_| Loads::new()).collect();
    let of_services = balancers(&services, &loads, Algorithm::RoundRobin);
    let balancers = Mutex::new(Balancers { algorithm: Algorithm::RoundRobin, of_services });
    let (messages, board) = (messages.clone(), board.clone());
    let shared = Arc::new(Shared { services, messages, loads, balancers, board });
    let mut callers = JoinSet::new();
    for service in 0..shared.services.len() {
        callers.spawn(shared.clone().call_for_ever(service));
    }
    Traffic { shared, _callers: callers }
}

fn balancers(services: &[Service], loads: &[Loads], algorithm: Algorithm) -> Vec<Balancer> {
    let balancer = |(service, loads): (&Service, &Loads)| {
        Balancer::builder(service.view()).algorithm(algorithm).loads(loads.clone()).build()
    };
    services.iter().zip(loads).map(balancer).collect()
}

impl Traffic {
    /// How instances are picked now.
    pub(super) fn algorithm(&self) -> Algorithm {
        lock(&self.shared.balancers).algorithm
    }

    /// Goes on to the next algorithm.
    pub(super) fn next_algorithm(&self) -> Algorithm {
        let mut balancers = lock(&self.shared.balancers);
        let at = Algorithm::ALL.iter().position(|algorithm| *algorithm == balancers.algorithm).unwrap_or(0);
        let next = Algorithm::ALL[(at + 1) % Algorithm::ALL.len()];
        let of_services = self::balancers(&self.shared.services, &self.shared.loads, next);
        *balancers = Balancers { algorithm: next, of_services };
        let messages = self.shared.messages.clone();
        tokio::spawn(async move {
            if let Err(failure) = messages.balance_by(next).await {
                tracing::warn!(?failure, "the relay goes on as before");
            }
        });
        next
    }

    /// How many calls are under way at each instance of a service.
    pub(super) fn in_flight(&self, service: usize) -> Vec<(Arc<str>, usize)> {
        if service == 1 {
            self.shared.messages.in_flight()
        } else {
            lock(&self.shared.balancers).of_services[service].in_flight()
        }
    }
}

impl Shared {
    async fn call_for_ever(self: Arc<Self>, service: usize) {
        let mut ticks = tokio::time::interval(PAUSE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut calls = JoinSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => match service {
                    0 => match self.pick(service) {
                        Some(claim) => drop(calls.spawn(self.clone().call(claim))),
                        None => lock(&self.board).count_unserved(),
                    },
                    _ => drop(calls.spawn(self.clone().request())),
                },
                Some(_) = calls.join_next() => {}
            }
        }
    }

    /// Hundred clients, each of which asks for the same things again and again.
    fn pick(&self, service: usize) -> Option<Claim> {
        let key = format!("/data/{}", fastrand::u8(..100));
        lock(&self.balancers).of_services[service].pick(&key).ok()
    }

    async fn call(self: Arc<Self>, claim: Claim) {
        let instance = claim.instance();
        lock(&self.board).count_pick(&instance.service, &instance.code);
        let address = claim.address().unwrap_or_default();
        let outcome = Outcome::from(&sample::call(address, "/data").await);
        if matches!(outcome, Outcome::Failure) {
            lock(&self.board).count_failed();
        }
        claim.report(outcome);
    }

    /// A message to the relay, which picks; who it was shows by the answer.
    async fn request(self: Arc<Self>) {
        match self.messages.request(TOPIC, "who?").await {
            Ok(code) => lock(&self.board).count_pick(self.services[1].name(), &code),
            Err(pointsman::mqtt::Error::NotDelivered { .. }) => lock(&self.board).count_unserved(),
            Err(_) => lock(&self.board).count_failed(),
        }
    }
}

/// A lock that is held for a moment only, never across an await.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
