//! What the tests of the relay share: a fleet whose instances come and go as a test says, and clients that are none of ours.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman_core::{Instance, Role, Snapshot, Term, View, ViewWriter};
use pointsman_mqtt::relay::{Figures, Relay, Route, Settings, Views};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoOptions};
use tokio::sync::watch;

/// What should happen happens within this.
pub const SOON: Duration = Duration::from_secs(20);

/// The code of a relay, as the seed's example has it.
pub const RELAY: &str = "efda4376-529c-4752-a264-553aa0c7f989";

/// The instances of services, as a registry would show them.
pub struct Fleet {
    writers: Mutex<HashMap<String, (ViewWriter, Vec<Instance>)>>,
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
        views
            .iter()
            .map(|(service, (writer, _))| (Arc::from(service.as_str()), writer.view()))
            .collect::<HashMap<Arc<str>, View>>()
    }

    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn join(&self, service: &str, instance: Instance) {
        self.edit(service, |instances| {
            instances.retain(|other| other.code != instance.code);
            instances.push(instance);
        });
    }

    pub fn leave(&self, service: &str, code: &str) {
        self.edit(service, |instances| instances.retain(|instance| &*instance.code != code));
    }

    fn edit(&self, service: &str, edit: impl FnOnce(&mut Vec<Instance>)) {
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

pub fn normal(service: &str, code: &str) -> Instance {
    let mut instance = Instance::new(service).code(code);
    instance.role = Role::Normal;
    instance
}

pub fn master(service: &str, code: &str) -> Instance {
    let mut instance = Instance::new(service).code(code);
    instance.role = Role::Master(Term(1));
    instance
}

/// `^/login(/|$)` is for `cfgs`, on one broker.
pub fn settings(broker: &Mosquitto) -> Settings {
    between(&broker.url(), &broker.url(), vec![Route::new("^/login(/|$)", "cfgs")])
}

pub fn between(ingress: &str, egress: &str, routes: Vec<Route>) -> Settings {
    let mut settings = Settings::new();
    settings.ingress = Some(ingress.parse().unwrap());
    settings.egress = vec![egress.parse().unwrap()];
    settings.code = RELAY.into();
    settings.routes = routes;
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
