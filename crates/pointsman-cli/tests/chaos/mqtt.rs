//! Chaos behind a message broker: services that are killed, stopped and restarted, and relays that are.
//!
//! # Rules
//!
//! | | is a fault if |
//! |---|---|
//! | a request (QoS 1, may be carried out twice) | it is answered by an error, although a service was available throughout, and a relay |
//! | | there is no answer at all, although a service and a relay were available for [`WINDOW`] without a break |
//! | a message (QoS 1) | it is refused, under the same conditions |
//! | | it was acknowledged and has arrived nowhere by the end, although a service was available throughout: otherwise it may be a dead letter |
//!
//! A relay is available while its process runs and is ready; what has been dealt to one that is killed waits for it to come back.

mod service;
#[cfg(test)]
mod tests;
mod world;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::Registry;
use pointsman::mqtt::{Client, Error, Message};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub(crate) use self::service::run as run_service;
use self::world::World;
use crate::history::Time;
use crate::recorder::Recorder;
use crate::report::Report;
use crate::truth::Truth;

/// Time for which a service and a relay that are there must be enough to answer a request.
pub(crate) const WINDOW: Duration = Duration::from_secs(8);

/// Time that a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(25);

/// Time for acknowledged messages to arrive, when all services are there.
const ARRIVAL: Duration = Duration::from_secs(10);

/// A message that a client has sent.
#[derive(Debug, Clone)]
struct Sent {
    id: String,
    is_request: bool,
    start: Time,
    end: Time,
    outcome: Result<(), Failed>,
}

#[derive(Debug, Clone)]
struct Failed {
    is_silence: bool,
    why: String,
}

/// A run from beginning to end.
pub(crate) async fn run(seed: u64, length: Duration) -> Report {
    let mut world = World::start(fastrand::Rng::with_seed(seed)).await;
    let registry = Registry::connect(&world.registry).await.unwrap();
    let load = Load::start(&registry, &world.recorder).await;
    world.run(length).await;
    let sent = load.end().await;
    let acknowledged = |sent: &&Sent| !sent.is_request && sent.outcome.is_ok();
    let wanted: HashSet<&str> = sent.iter().filter(acknowledged).map(|sent| &*sent.id).collect();
    let arrived = world.until_arrived(&wanted, ARRIVAL).await;
    let (recorder, counts) = (world.recorder.clone(), std::mem::take(&mut world.counts));
    world.end().await;
    let truth = recorder.truth().clone();
    report(&truth, &sent, &arrived, &counts)
}

/// Clients that request and publish all the time.
struct Load {
    sent: Arc<Mutex<Vec<Sent>>>,
    is_ending: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    async fn start(registry: &Registry, recorder: &Recorder) -> Self {
        let (sent, is_ending, mut clients) = (Arc::default(), Arc::new(AtomicBool::new(false)), JoinSet::new());
        for number in 0..3 {
            let client = Arc::new(Client::builder(registry, "mqtt-balancer").start().await.unwrap());
            for kind in ["request", "publish"] {
                let sender = Sender {
                    name: format!("{kind}{number}"),
                    client: client.clone(),
                    recorder: recorder.clone(),
                    sent: Arc::clone(&sent),
                    is_ending: is_ending.clone(),
                };
                clients.spawn(sender.send_all(kind == "request"));
            }
        }
        Self { sent, is_ending, clients }
    }

    async fn end(mut self) -> Vec<Sent> {
        self.is_ending.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client that does not panic");
        }
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

struct Sender {
    name: String,
    client: Arc<Client>,
    recorder: Recorder,
    sent: Arc<Mutex<Vec<Sent>>>,
    is_ending: Arc<AtomicBool>,
}

impl Sender {
    async fn send_all(self, is_request: bool) {
        for number in 0.. {
            sleep(Duration::from_millis(fastrand::u64(10..50))).await;
            if self.is_ending.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("{}-{number}", self.name);
            let message = Message::new("/ask/it", id.clone()).retry(is_request);
            let start = self.recorder.now();
            let outcome = if is_request {
                self.client.call(message, PATIENCE).await.map(|reply| reply.payload == id)
            } else {
                self.client.send(message).await.map(|()| true)
            };
            let outcome = match outcome {
                Ok(true) => Ok(()),
                Ok(false) => Err(Failed { is_silence: false, why: "an answer to another request".to_owned() }),
                Err(error) => Err(Failed {
                    is_silence: matches!(error, Error::Timeout { .. } | Error::NoRelay { .. }),
                    why: error.to_string(),
                }),
            };
            let sent = Sent { id, is_request, start, end: self.recorder.now(), outcome };
            self.sent.lock().unwrap().push(sent);
        }
    }
}

/// Whether a service and a relay were there throughout.
fn could_serve(truth: &Truth, start: Time, end: Time) -> bool {
    let relay = truth.serves.iter().any(|up| up.throughout(start.saturating_sub(crate::truth::SETTLE), end, |up| up));
    relay && truth.available(start, end).is_some()
}

/// Whether both were there for a part of the time that is long enough.
fn could_serve_for_a_while(truth: &Truth, start: Time, end: Time) -> bool {
    let mut from = start;
    while from + WINDOW <= end {
        if could_serve(truth, from, from + WINDOW) {
            return true;
        }
        from += Duration::from_millis(200);
    }
    false
}

/// Says what kind of fault a message has met, if it has, and whether it was avoidable.
fn judge(truth: &Truth, sent: &Sent, arrived: &HashSet<String>) -> Option<(String, bool)> {
    let Sent { start, end, .. } = *sent;
    let kind = if sent.is_request { "request" } else { "message" };
    match &sent.outcome {
        Ok(()) if sent.is_request || arrived.contains(&sent.id) => None,
        Ok(()) => Some(("an acknowledged message has not arrived".to_owned(), could_serve(truth, start, end))),
        Err(Failed { is_silence: true, .. }) => {
            Some((format!("no answer to a {kind}"), could_serve_for_a_while(truth, start, end)))
        }
        Err(Failed { why, .. }) => {
            let why = why.split(':').next().unwrap_or_default();
            Some((format!("error for a {kind}: {why}"), could_serve(truth, start, end)))
        }
    }
}

fn report(truth: &Truth, sent: &[Sent], arrived: &HashSet<String>, counts: &BTreeMap<String, usize>) -> Report {
    use std::fmt::Write as _;
    let mut report = Report::default();
    let (mut unavoidable, mut avoidable) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    for sent in sent {
        match judge(truth, sent, arrived) {
            None => report.answered += 1,
            Some((kind, false)) => *unavoidable.entry(kind).or_default() += 1,
            Some((kind, true)) => {
                report.faults += 1;
                let count = avoidable.entry(kind.clone()).or_default();
                *count += 1;
                let why = sent.outcome.as_ref().err().map(|failed| &*failed.why).unwrap_or_default();
                let (start, end) = (sent.start.as_secs_f64(), sent.end.as_secs_f64());
                let _ = writeln!(report.text, "━━ {start:.3}–{end:.3} {}: {kind}; {why}", sent.id);
                if *count <= 3 {
                    crate::report::timeline(truth, &mut report.text, sent.start, sent.end, Duration::from_secs(10));
                }
            }
        }
    }
    report.faults += crate::report::recovery(truth, &mut report.text);
    let total = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
    let _ = writeln!(report.text, "chaos behind a broker: {} messages", sent.len());
    for (words, counts) in [("unavoidable", &unavoidable), ("avoidable", &avoidable)] {
        let _ = writeln!(report.text, "  {:6} {words}", total(counts));
        for (kind, count) in counts {
            let _ = writeln!(report.text, "  {count:6}   {kind}");
        }
    }
    let actions: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let _ = writeln!(report.text, "  actions: {}", actions.join(", "));
    report
}
