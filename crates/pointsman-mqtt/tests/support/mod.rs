//! What the tests of the relay share: a fleet whose instances come and go as a test says, and clients that are none of ours.

#![allow(clippy::unwrap_used, dead_code, unused_imports, unreachable_pub)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Term, View, ViewWriter};
use pointsman_mqtt::relay::{Figures, Relay, Route, Settings, Views};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoMessage, PahoOptions, PahoSubscription};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What should happen happens within this.
pub const SOON: Duration = Duration::from_secs(20);

/// The code of a relay, as the seed's example has it.
pub const RELAY: &str = "efda4376-529c-4752-a264-553aa0c7f989";

/// The instances of services, as a registry would show them.
pub struct Fleet {
    writers: Mutex<HashMap<String, (ViewWriter, Vec<ObservedInstance>)>>,
    changed: watch::Sender<()>,
}

impl Fleet {
    pub fn new(services: &[(&str, &[&str])]) -> Self {
        let fleet = Self { writers: Mutex::default(), changed: watch::Sender::new(()) };
        for (service, codes) in services {
            let writer = ViewWriter::new(Snapshot::empty(*service));
            fleet.writers.lock().unwrap().insert((*service).to_owned(), (writer, Vec::new()));
            for code in *codes {
                fleet.join(service, normal(service, code));
            }
        }
        fleet
    }

    pub fn views(&self) -> Views {
        let views = self.writers.lock().unwrap();
        views.iter().map(|(service, (writer, _))| (service.as_str().into(), writer.view())).collect()
    }

    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn join(&self, service: &str, instance: impl Into<ObservedInstance>) {
        let instance = instance.into();
        self.edit(service, |instances| {
            instances.retain(|other| other.code != instance.code);
            instances.push(instance);
        });
    }

    pub fn leave(&self, service: &str, code: &str) {
        self.edit(service, |instances| instances.retain(|instance| &*instance.code != code));
    }

    fn edit(&self, service: &str, edit: impl FnOnce(&mut Vec<ObservedInstance>)) {
        let mut writers = self.writers.lock().unwrap();
        let (writer, instances) = writers.get_mut(service).unwrap();
        edit(instances);
        let revision = writer.load().revision() + 1;
        writer.store(Arc::new(Snapshot::new(service, revision, instances.iter().cloned().map(Arc::new).collect())));
        self.changed.send_replace(());
    }

    /// Starts a relay over these services, and waits until it is ready.
    pub async fn relay(&self, settings: Settings) -> Relay {
        let relay = Relay::start(settings, self.views(), self.changed(), None).unwrap();
        tokio::time::timeout(SOON, relay.ready()).await.expect("the relay to be ready").unwrap();
        relay
    }
}

pub fn normal(service: &str, code: &str) -> ObservedInstance {
    observed(Instance::with_code(service, code))
}

/// A normal instance that has registered this.
pub fn observed(instance: Instance) -> ObservedInstance {
    ObservedInstance::new(instance, Role::Normal)
}

pub fn master(service: &str, code: &str) -> ObservedInstance {
    ObservedInstance::new(Instance::with_code(service, code), Role::Master(Term(1)))
}

/// `^/login(/|$)` is for `cfgs`, on one broker.
pub fn settings(broker: &Mosquitto) -> Settings {
    between(&broker.url(), &broker.url(), vec![Route::new("^/login(/|$)", "cfgs")])
}

pub fn between(ingress: &str, egress: &str, routes: Vec<Route>) -> Settings {
    let mut settings = Settings::new();
    settings.ingress = Some(ingress.parse().unwrap());
    settings.egress = vec![egress.parse().unwrap()];
    settings.code = Some(RELAY.into());
    settings.routes = routes;
    // Most tests are about what comes after that.
    settings.away_timeout = Duration::ZERO;
    settings
}

pub async fn client(broker: &Mosquitto) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(&broker.address())).await;
    paho
}

/// A service behind a broker: it gets what is sent to its code, and answers.
pub async fn service(broker: &Mosquitto, code: &str) -> Paho {
    let paho = client(broker).await;
    paho.subscribe(&format!("{code}/#"), 2).await;
    paho.echo(Echo::default().prefix(&format!("{code}:"))).await;
    paho
}

pub async fn figures(relay: &Relay) -> Figures {
    relay.figures().await.unwrap()
}

/// Takes what is sent to each of these codes, and answers nothing.
pub async fn everyone(broker: &Mosquitto, codes: &[&str]) -> Paho {
    let paho = client(broker).await;
    for code in codes {
        paho.subscribe(&format!("{code}/#"), 2).await;
    }
    paho
}

/// Takes what nobody else does.
pub async fn dead_letters(broker: &Mosquitto) -> Paho {
    let paho = client(broker).await;
    paho.subscribe("pointsman/dead-letter/#", 2).await;
    paho
}

/// Publishes all of them, in this order, without waiting for one before the next; returns when all are acknowledged.
pub async fn publish_all(sender: &Paho, messages: impl IntoIterator<Item = PahoMessage>) {
    join_all(messages.into_iter().map(|message| sender.publish(message))).await;
}

/// Messages whose payloads are these numbers.
pub fn numbered(topic: &str, numbers: std::ops::Range<usize>, qos: u8) -> Vec<PahoMessage> {
    numbers.map(|number| PahoMessage::new(topic, number.to_string()).qos(qos)).collect()
}

/// The numbers of `count` numbered messages in the order of their first arrival; and how many came again. Panics when one is
/// missing.
pub async fn collect(service: &Paho, count: usize) -> (Vec<usize>, usize) {
    let (mut numbers, mut again) = (Vec::new(), 0);
    let mut seen = vec![false; count];
    while numbers.len() < count {
        let Some(message) = service.try_next_message(SOON).await else {
            let missing: Vec<usize> = (0..count).filter(|&number| !seen[number]).collect();
            panic!("{} of {count} are missing: {missing:?}", missing.len());
        };
        let number: usize = message.text().parse().unwrap();
        if std::mem::replace(&mut seen[number], true) {
            again += 1;
        } else {
            numbers.push(number);
        }
    }
    (numbers, again)
}

/// Whatever is published to `code` with the payload `end` comes after all that was published before; returns how many did.
pub async fn rest(service: &Paho, sender: &Paho, code: &str) -> usize {
    sender.publish(PahoMessage::new(&format!("{code}/end"), "end").qos(2)).await;
    service.messages_until(|message| message.text() == "end", SOON).await.len() - 1
}

/// Waits until the figures are as wanted.
pub async fn until(relay: &Relay, what: &str, wanted: impl Fn(&Figures) -> bool) -> Figures {
    let start = Instant::now();
    loop {
        let figures = figures(relay).await;
        if wanted(&figures) {
            return figures;
        }
        assert!(start.elapsed() < SOON, "not {what}: {figures:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the relay has noticed that its connection to a broker (`host:port`) is there, or gone.
pub async fn connected(relay: &Relay, broker: &str, wanted: bool) {
    let start = Instant::now();
    let ending = format!("{broker}\"}} {}", u8::from(wanted));
    loop {
        let metrics = relay.metrics().await.unwrap();
        if metrics.lines().any(|line| line.contains("connected") && line.ends_with(&ending)) {
            return;
        }
        assert!(start.elapsed() < SOON, "{broker} connected is not {wanted}:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value of a user property.
pub fn property<'a>(message: &'a PahoMessage, name: &str) -> Option<&'a str> {
    message.user_properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// A relay in a runtime of its own, which can be killed: nothing of it runs, and its sockets are closed, from one moment to the
/// next.
pub struct Mortal {
    runtime: Option<Runtime>,
    relay: Option<Relay>,
}

impl Mortal {
    pub async fn start(fleet: &Fleet, settings: Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let relay = {
            let _inside = runtime.enter();
            Relay::start(settings, fleet.views(), fleet.changed(), None).unwrap()
        };
        let it = Self { runtime: Some(runtime), relay: Some(relay) };
        tokio::time::timeout(SOON, it.relay().ready()).await.expect("the relay to be ready").unwrap();
        it
    }

    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().unwrap()
    }

    pub fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        std::thread::spawn(move || runtime.shutdown_timeout(SOON)).join().unwrap();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
