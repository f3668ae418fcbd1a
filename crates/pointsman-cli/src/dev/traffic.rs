//! Callers: a steady stream of calls of each service, by the proxy and by the relay, which pick.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman::{Algorithm, Service};
use tokio::task::JoinSet;

use crate::dev::board::Board;
use crate::dev::fleet::Fleet;
use crate::dev::messages::{Messages, TOPIC};
use crate::dev::requests::{PATH, Requests};
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
    requests: Arc<Requests>,
    messages: Arc<Messages>,
    algorithm: Mutex<Algorithm>,
    board: Arc<Mutex<Board>>,
}

/// Starts the callers.
pub(super) fn start(
    fleet: &Fleet,
    requests: &Arc<Requests>,
    messages: &Arc<Messages>,
    board: &Arc<Mutex<Board>>,
) -> Traffic {
    let shared = Arc::new(Shared {
        services: fleet.services().to_vec(),
        requests: requests.clone(),
        messages: messages.clone(),
        algorithm: Mutex::new(Algorithm::RoundRobin),
        board: board.clone(),
    });
    let mut callers = JoinSet::new();
    for service in 0..shared.services.len() {
        callers.spawn(shared.clone().call_for_ever(service));
    }
    Traffic { shared, _callers: callers }
}

impl Traffic {
    /// How instances are picked now.
    pub(super) fn algorithm(&self) -> Algorithm {
        *lock(&self.shared.algorithm)
    }

    /// Goes on to the next algorithm.
    pub(super) fn next_algorithm(&self) -> Algorithm {
        let mut algorithm = lock(&self.shared.algorithm);
        let at = Algorithm::ALL.iter().position(|one| *one == *algorithm).unwrap_or(0);
        let next = Algorithm::ALL[(at + 1) % Algorithm::ALL.len()];
        *algorithm = next;
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Err(failure) = shared.requests.balance_by(next).await {
                tracing::warn!(?failure, "the proxy goes on as before");
            }
            if let Err(failure) = shared.messages.balance_by(next).await {
                tracing::warn!(?failure, "the relay goes on as before");
            }
        });
        next
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
                    0 => drop(calls.spawn(self.clone().call())),
                    _ => drop(calls.spawn(self.clone().request())),
                },
                Some(_) = calls.join_next() => {}
            }
        }
    }

    /// A request to the proxy, from one of a hundred clients, each of which asks for the same thing again and again; who it was that the
    /// proxy has picked shows by the answer.
    async fn call(self: Arc<Self>) {
        let number = fastrand::u8(..100);
        let (path, client) = (format!("{PATH}/{number}"), format!("10.0.0.{number}"));
        let answer = self.requests.ask(&path, &[("x-forwarded-for", &client)]).await;
        let mut board = lock(&self.board);
        match answer {
            Ok(answer) if answer.status == 503 => board.count_unserved(),
            Ok(answer) => match sample::who(&answer.body) {
                Some(code) => board.count_pick(self.services[0].name(), &code.into()),
                None => board.count_failed(),
            },
            Err(_) => board.count_failed(),
        }
    }

    /// A message to the relay, which picks.
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
