//! Clients that request and publish all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::Registry;
use pointsman::mqtt::{Client, Error, Message};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::history::Time;
use crate::recorder::Recorder;

const CLIENTS: usize = 2;

/// Time that a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(25);

/// Topics of the route for normal instances and of that for the master.
pub(super) const NORMAL: &str = "/ask";
pub(super) const MASTER: &str = "/lead";

/// A message that a client has sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) is_request: bool,
    pub(super) is_for_the_master: bool,
    pub(super) start: Time,
    pub(super) end: Time,
    pub(super) outcome: Outcome,
}

/// What a client has seen of a message.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// A request was answered by the instance with this code.
    Answered(String),
    /// A request got this answer, which is not its own.
    Wrong(String),
    /// A message was acknowledged.
    Taken,
    /// There was no answer or acknowledgement in time.
    Silence(String),
    /// An error came back.
    Failed(String),
}

/// All clients.
pub(super) struct Load {
    sent: Arc<Mutex<Vec<Sent>>>,
    is_ending: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(super) async fn start(registry: &Registry, recorder: &Recorder) -> Self {
        let (sent, is_ending, mut clients) = (Arc::default(), Arc::new(AtomicBool::new(false)), JoinSet::new());
        for number in 0..CLIENTS {
            let client = Arc::new(Client::builder(registry, "mqtt-balancer").start().await.unwrap());
            for (kind, is_request, is_for_the_master) in [
                ("request", true, false),
                ("publish", false, false),
                ("master-request", true, true),
                ("master-publish", false, true),
            ] {
                let sender = Sender {
                    name: format!("{kind}{number}"),
                    is_request,
                    is_for_the_master,
                    client: client.clone(),
                    recorder: recorder.clone(),
                    sent: Arc::clone(&sent),
                    is_ending: is_ending.clone(),
                };
                clients.spawn(sender.send_all());
            }
        }
        Self { sent, is_ending, clients }
    }

    pub(super) async fn end(mut self) -> Vec<Sent> {
        self.is_ending.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client that does not panic");
        }
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

struct Sender {
    name: String,
    is_request: bool,
    is_for_the_master: bool,
    client: Arc<Client>,
    recorder: Recorder,
    sent: Arc<Mutex<Vec<Sent>>>,
    is_ending: Arc<AtomicBool>,
}

impl Sender {
    async fn send_all(self) {
        for number in 0.. {
            sleep(Duration::from_millis(fastrand::u64(10..50))).await;
            if self.is_ending.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("{}-{number}", self.name);
            let start = self.recorder.now();
            let outcome = self.send(&id).await;
            let Self { is_request, is_for_the_master, .. } = self;
            let end = self.recorder.now();
            self.sent.lock().unwrap().push(Sent { id, is_request, is_for_the_master, start, end, outcome });
        }
    }

    async fn send(&self, id: &str) -> Outcome {
        let topic = if self.is_for_the_master { MASTER } else { NORMAL };
        let message = Message::new(format!("{topic}/{id}"), id.to_owned()).retry(self.is_request);
        let outcome = if self.is_request {
            self.client.call(message, PATIENCE).await.map(|reply| {
                let answer = String::from_utf8_lossy(&reply.payload).into_owned();
                match answer.split_once(' ') {
                    Some((answered, code)) if answered == id => Outcome::Answered(code.to_owned()),
                    _ => Outcome::Wrong(answer),
                }
            })
        } else {
            self.client.send(message).await.map(|()| Outcome::Taken)
        };
        outcome.unwrap_or_else(|error| match error {
            Error::Timeout { .. } | Error::NoRelay { .. } => Outcome::Silence(error.to_string()),
            error => Outcome::Failed(error.to_string()),
        })
    }
}
