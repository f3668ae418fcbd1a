//! The task of a service: it starts handlers, and leaves in the right order.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use pointsman_mqtt::client::{Client, Inbox, Incoming, PublishError};
use pointsman_mqtt::packet::{Publish, Qos};
use pointsman_mqtt::relay::Topics;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::connected;
use super::handlers::{Counters, Handlers};
use crate::mqtt::{self, BrokerUrl, Request};
use crate::{Error, Registration};

/// How long telling the registry may take, when the service leaves.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(2);
/// After the registry has been told that the service takes no more work, relays learn of it; the service goes on until so long
/// nothing has come.
const QUIET: Duration = Duration::from_millis(250);
/// How long the broker has at the end to take what is still to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a [`Service`](super::Service) asks of its task, and where it awaits the outcome.
#[derive(Debug)]
pub(super) enum Command {
    Resign(oneshot::Sender<Result<(), Error>>),
    Close(oneshot::Sender<Result<(), Error>>),
}

pub(super) struct Worker {
    pub(super) serving: Serving,
    pub(super) registration: Registration,
    pub(super) drain_timeout: Duration,
    pub(super) commands: mpsc::Receiver<Command>,
}

impl Worker {
    /// Runs until the service is closed or dropped, and has left.
    pub(super) async fn run(mut self) {
        let closing = loop {
            match self.serving.until(self.commands.recv()).await.flatten() {
                Some(Command::Resign(done)) => drop(done.send(self.resign().await)),
                Some(Command::Close(done)) => break Some(done),
                None => break None,
            }
        };
        let outcome = self.leave().await;
        match closing {
            Some(done) => drop(done.send(outcome)),
            None => {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "the service's registration ends with its session");
                }
            }
        }
    }

    async fn resign(&mut self) -> Result<(), Error> {
        let resigned = self.serving.until(timeout(REGISTRY_PATIENCE, self.registration.resign())).await;
        match resigned {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => {
                let reason = "no answer in time".to_owned();
                Err(Error::unavailable("resign".to_owned(), reason))
            }
            None => Err(Error::Closed { what: format!("service {}", self.serving.shared.code) }),
        }
    }

    async fn leave(self) -> Result<(), Error> {
        let Self { mut serving, registration, drain_timeout, .. } = self;
        let deadline = Instant::now() + drain_timeout;
        tracing::info!(code = &*serving.shared.code, "leaving: no more work is taken, handlers finish");
        let patience = REGISTRY_PATIENCE.min(drain_timeout);
        if registration.role().is_master() {
            // First: a master that takes no work would keep what is meant for the master from everybody.
            let resigned = serving.until(timeout(patience, registration.resign())).await;
            if let Some(Ok(Err(error))) = resigned.filter(|result| !matches!(result, Ok(Err(Error::NotMaster { .. }))))
            {
                tracing::warn!(%error, "the mastership could not be handed over before the service leaves");
            }
        }
        let told = timeout(patience, registration.update(|instance| instance.weight = 0));
        if let Some(Ok(Err(error))) = serving.until(told).await {
            tracing::warn!(%error, "the registry could not be told that the service leaves");
        }
        serving.until_quiet(QUIET, deadline).await;
        let client = serving.shared.client.clone();
        serving.until(timeout_at(deadline, client.unsubscribe())).await;
        let clean = serving.until_quiet(Duration::ZERO, deadline).await;
        if !clean {
            tracing::warn!(handlers = serving.running.len(), "left before all handlers had finished");
        }
        serving.running.shutdown().await;
        // Only now: a relay sends the requests of an instance that is gone elsewhere.
        let closed = timeout(REGISTRY_PATIENCE, registration.close()).await;
        drop(serving);
        // What was not finished stays in the broker's session, for the next instance of this code.
        client.close(FAREWELL, clean).await;
        closed.unwrap_or_else(|_| {
            let reason = "no answer in time".to_owned();
            Err(Error::unavailable("deregister".to_owned(), reason))
        })
    }
}

/// Takes messages, and runs their handlers.
pub(super) struct Serving {
    inbox: Inbox,
    running: JoinSet<()>,
    shared: Arc<Shared>,
    /// One for each handler that may run. What waits for its answer to be acknowledged holds none: the acknowledgement may have
    /// to be read after messages that wait for a handler.
    slots: Arc<Semaphore>,
}

struct Shared {
    client: Client,
    handlers: Handlers,
    topics: Topics,
    code: Arc<str>,
    counters: Arc<Counters>,
}

impl Serving {
    pub(super) fn new(
        (client, inbox): (Client, Inbox),
        handlers: Handlers,
        (topics, code): (Topics, Arc<str>),
        limit: u16,
        counters: Arc<Counters>,
    ) -> Self {
        let shared = Arc::new(Shared { client, handlers, topics, code, counters });
        Self { inbox, running: JoinSet::new(), shared, slots: Arc::new(Semaphore::new(limit.into())) }
    }

    /// Serves until the broker has confirmed the subscriptions. It may do so only after messages that have waited.
    pub(super) async fn until_connected(&mut self, broker: &BrokerUrl, within: Duration) -> Result<(), mqtt::Error> {
        let (client, broker) = (self.shared.client.clone(), broker.to_string());
        loop {
            let received = self.shared.counters.figures().received;
            let connected = self.until(connected(&client, &broker, within)).await;
            match connected.unwrap_or(Err(mqtt::Error::Closed)) {
                Err(mqtt::Error::Unreachable { .. }) if self.shared.counters.figures().received > received => {}
                outcome => return outcome,
            }
        }
    }

    /// Ends without having been registered for work.
    pub(super) async fn abandon(mut self, forget: bool) {
        self.running.shutdown().await;
        self.shared.client.clone().close(FAREWELL, forget).await;
    }

    /// Serves until that is ready; `None` when the client has ended before.
    async fn until<T>(&mut self, ready: impl Future<Output = T>) -> Option<T> {
        let mut ready = std::pin::pin!(ready);
        loop {
            tokio::select! {
                biased;
                ready = &mut ready => return Some(ready),
                Some(_) = self.running.join_next() => {}
                next = next(&self.slots, &mut self.inbox) => self.begin(next?),
            }
        }
    }

    /// Serves until no handler runs and for so long nothing has come, or until the deadline; whether it is quiet then.
    async fn until_quiet(&mut self, quiet: Duration, deadline: Instant) -> bool {
        let mut last = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(deadline) => return self.running.is_empty(),
                Some(_) = self.running.join_next() => last = Instant::now(),
                next = next(&self.slots, &mut self.inbox) => {
                    let Some(next) = next else { return self.running.is_empty() };
                    self.begin(next);
                }
                () = sleep_until(last + quiet), if self.running.is_empty() => return true,
            }
        }
    }

    fn begin(&mut self, (slot, incoming): (OwnedSemaphorePermit, Incoming)) {
        self.running.spawn(self.shared.clone().serve(slot, incoming));
    }
}

/// The next message, with a slot for its handler. Cancellation loses nothing.
async fn next(slots: &Arc<Semaphore>, inbox: &mut Inbox) -> Option<(OwnedSemaphorePermit, Incoming)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    Some((slot, inbox.next().await?))
}

impl Shared {
    async fn serve(self: Arc<Self>, slot: OwnedSemaphorePermit, incoming: Incoming) {
        count(&self.counters.received);
        let answer = self.handle(&incoming.publish).await;
        drop(slot);
        if let Some(answer) = answer {
            self.answer(answer).await;
        }
        incoming.acknowledge();
    }

    /// Runs the handler; what is to be answered, if anybody waits.
    async fn handle(&self, publish: &Publish) -> Option<Publish> {
        let Some(request) = Request::read(publish, self.topics, &self.code) else {
            self.unmatched(&publish.topic);
            return None;
        };
        let reply_to = request.reply_to.clone();
        let correlation = request.correlation().cloned();
        let Some(handler) = self.handlers.find(request.topic()) else {
            self.unmatched(&publish.topic);
            let detail = format!("the service has no handler for {:?}", request.topic());
            return Some(problem(reply_to?, correlation, publish.qos, "no-handler", &detail));
        };
        // The call as well as the future that it gives.
        let outcome = AssertUnwindSafe(async { handler(request).await }).catch_unwind().await;
        let detail = match outcome {
            Ok(Ok(reply)) => {
                count(&self.counters.handled);
                return Some(reply.into_publish(&reply_to?, correlation, publish.qos));
            }
            Ok(Err(error)) => {
                tracing::warn!(topic = &*publish.topic, %error, "a handler has failed");
                error.to_string()
            }
            Err(panic) => {
                tracing::error!(topic = &*publish.topic, panic = words(&*panic), "a handler has panicked");
                "the handler has panicked".to_owned()
            }
        };
        count(&self.counters.failed);
        Some(problem(reply_to?, correlation, publish.qos, "handler", &detail))
    }

    /// Sends an answer; in place of one that MQTT cannot express or the broker does not take, an error.
    async fn answer(&self, answer: Publish) {
        let (topic, correlation) = (answer.topic.clone(), answer.properties.correlation.clone());
        let qos = answer.qos;
        let Err(error) = self.client.publish(answer).await else { return count(&self.counters.answered) };
        tracing::warn!(topic = &*topic, %error, "an answer cannot be sent");
        if matches!(error, PublishError::Unsendable(_) | PublishError::Expired) {
            let detail = format!("the answer cannot be sent: {error}");
            if self.client.publish(problem(topic.to_string(), correlation, qos, "handler", &detail)).await.is_ok() {
                count(&self.counters.answered);
            }
        }
    }

    fn unmatched(&self, topic: &str) {
        count(&self.counters.unmatched);
        if self.counters.unmatched_told.swap(true, Ordering::Relaxed) {
            tracing::debug!(topic, "no handler");
        } else {
            tracing::warn!(topic, "messages come for which there is no handler; this is told once");
        }
    }
}

fn problem(topic: String, correlation: Option<bytes::Bytes>, qos: Qos, reason: &'static str, detail: &str) -> Publish {
    Publish { qos, ..pointsman_mqtt::problem::message(topic.into(), correlation, reason, detail) }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}
