//! Collects dead letters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_testkit::{Paho, PahoEvent, PahoOptions};
use tokio::task::JoinHandle;

use crate::history::Time;
use crate::recorder::Recorder;

const FILTER: &str = "pointsman/dead-letter/#";

/// A dead letter.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) at: Time,
    pub(super) reason: String,
}

/// A client that collects dead letters until it is dropped.
pub(super) struct Letters {
    /// By the id of the message.
    all: Arc<Mutex<HashMap<String, Letter>>>,
    collector: JoinHandle<()>,
}

impl Letters {
    /// Starts a client of the broker at this address, which comes back by itself.
    pub(super) async fn collect(address: &str, recorder: &Recorder) -> Self {
        let paho = Paho::start().await;
        let options = PahoOptions::new(address).clean(false).session_expiry(Duration::from_secs(600)).reconnect();
        paho.connect(options).await;
        paho.subscribe(FILTER, 1).await;
        let all = Arc::<Mutex<HashMap<String, Letter>>>::default();
        let collector = tokio::spawn(collect(Arc::new(paho), all.clone(), recorder.clone()));
        Self { all, collector }
    }

    /// Returns those that have come, by the id of the message.
    pub(super) fn all(&self) -> HashMap<String, Letter> {
        self.all.lock().unwrap().clone()
    }

    /// Whether the message with this id has become one.
    pub(super) fn has(&self, id: &str) -> bool {
        self.all.lock().unwrap().contains_key(id)
    }
}

impl Drop for Letters {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

async fn collect(paho: Arc<Paho>, all: Arc<Mutex<HashMap<String, Letter>>>, recorder: Recorder) {
    loop {
        tokio::select! {
            message = paho.try_next_message(Duration::from_secs(1)) => {
                let Some(message) = message else { continue };
                let reason = message.user_properties.iter().find(|(name, _)| name == "pointsman-reason");
                let reason = reason.map(|(_, reason)| reason.clone()).unwrap_or_default();
                all.lock().unwrap().entry(message.text().to_owned()).or_insert(Letter { at: recorder.now(), reason });
            }
            // Never as long as that: the other branch ends each second.
            event = paho.next_event(Duration::from_secs(60)) => if matches!(event, PahoEvent::Connected(_)) {
                // In a task of its own: it panics where the connection is lost again before the acknowledgement.
                let paho = paho.clone();
                let _ = tokio::spawn(async move { paho.subscribe(FILTER, 1).await }).await;
            },
        }
    }
}
