//! Relays of one group, with the defaults: no code is given, and each is told only where its broker and its registry are.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use pointsman::mqtt::{Error, Relay, Settings};
use pointsman::{Registry, Snapshot};
use pointsman_testkit::{CuttingProxy, Mosquitto, Paho, PahoMessage};
use tokio::runtime::Runtime;

use crate::support::{SOON, paho, registry, route, started, within};

fn settings(broker: &str) -> Settings {
    let mut settings = Settings::new();
    settings.ingress = Some(broker.parse().unwrap());
    settings.routes = vec![route()];
    settings
}

/// A relay in a runtime of its own, which can be killed: nothing of it runs, and its sockets are closed, from one moment to the next.
struct Mortal {
    runtime: Runtime,
    _relay: Relay,
}

impl Mortal {
    async fn start(registry: &Registry, broker: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (registry, settings) = (registry.clone(), settings(broker));
        let relay = runtime.spawn(async move { started(&registry, settings).await });
        Self { _relay: within(relay).await.unwrap(), runtime }
    }

    fn kill(self) {
        std::thread::spawn(move || self.runtime.shutdown_timeout(SOON)).join().unwrap();
    }
}

async fn group_is(registry: &Registry, what: &str, is_so: impl FnMut(&Snapshot) -> bool) {
    let group = registry.discover("mqtt-balancer").await.unwrap();
    let group = tokio::time::timeout(SOON, group.wait_for(is_so)).await;
    group.unwrap_or_else(|_| panic!("not {what}")).unwrap();
}

fn is_one_alone(group: &Snapshot) -> bool {
    group.instances().len() == 1 && group.instances()[0].tags.get("subscribed").is_some_and(|value| value == "alone")
}

async fn alone(registry: &Registry) {
    group_is(registry, "one relay alone", is_one_alone).await;
}

/// An instance of `cfgs` that only takes messages.
async fn service(registry: &Registry, broker: &Mosquitto) -> (pointsman::Registration, Paho) {
    let registration = registry.register(pointsman::Instance::with_code("cfgs", "svc-a")).await.unwrap();
    let service = paho(broker).await;
    service.subscribe("svc-a/#", 2).await;
    (registration, service)
}

/// Publishes numbered messages, in portions, as long as there is something to do; returns how many, all of them acknowledged.
async fn publish_during(sender: &Paho, qos: u8, work: impl Future<Output = ()>) -> usize {
    let (mut sent, working) = (0_usize, Cell::new(true));
    let publishing = async {
        while working.get() {
            let portion = (sent..sent + 20).map(|number| PahoMessage::new("/login/x", number.to_string()).qos(qos));
            join_all(portion.map(|message| sender.publish(message))).await;
            sent += 20;
        }
    };
    tokio::join!(publishing, async {
        work.await;
        working.set(false);
    });
    sent
}

/// How often the numbers come; returns when each has come.
async fn collect(service: &Paho, count: usize) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    while counts.len() < count {
        let Some(message) = service.try_next_message(SOON).await else {
            let missing: Vec<usize> = (0..count).filter(|number| !counts.contains_key(number)).collect();
            panic!("{} of {count} are missing: {missing:?}", missing.len());
        };
        *counts.entry(message.text().parse().unwrap()).or_insert(0) += 1;
    }
    counts
}

#[tokio::test]
async fn the_first_code_that_is_free_is_taken() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let codes = async || {
        let group = registry.discover("mqtt-balancer").await.unwrap().snapshot();
        group.instances().iter().map(|relay| relay.code.clone()).collect::<Vec<Arc<str>>>()
    };
    let first = started(&registry, settings(&broker.url())).await;
    let of_first = codes().await;
    let second = started(&registry, settings(&broker.url())).await;
    let of_both = codes().await;
    assert_eq!((of_first.len(), of_both.len()), (1, 2));
    first.close().await;
    let third = started(&registry, settings(&broker.url())).await;
    assert_eq!(codes().await, of_both);
    second.close().await;
    third.close().await;
}

#[tokio::test]
async fn relays_join_and_leave_without_loss_or_double() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let first = started(&registry, settings(&broker.url())).await;
    alone(&registry).await;
    let sent = publish_during(&sender, 1, async {
        for _ in 0..3 {
            let second = started(&registry, settings(&broker.url())).await;
            group_is(&registry, "shared", |group| {
                !group.instances().iter().any(|relay| relay.tags.contains_key("subscribed"))
            })
            .await;
            second.close().await;
            alone(&registry).await;
        }
    })
    .await;
    let counts = collect(&service, sent).await;
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    first.close().await;
}

#[tokio::test]
async fn what_was_sent_to_a_relay_that_is_killed_comes_by_another() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let first = started(&registry, settings(&broker.url())).await;
    let sent = publish_during(&sender, 1, async {
        for _ in 0..3 {
            let mortal = Mortal::start(&registry, &broker.url()).await;
            group_is(&registry, "two", |group| group.instances().len() == 2).await;
            mortal.kill();
            alone(&registry).await;
        }
    })
    .await;
    collect(&service, sent).await;
    first.close().await;
}

#[tokio::test]
async fn a_relay_that_is_killed_and_started_again_loses_nothing() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let mut mortal = Some(Mortal::start(&registry, &broker.url()).await);
    let sent = publish_during(&sender, 1, async {
        for _ in 0..4 {
            alone(&registry).await;
            mortal.take().unwrap().kill();
            mortal = Some(Mortal::start(&registry, &broker.url()).await);
        }
    })
    .await;
    collect(&service, sent).await;
    mortal.unwrap().kill();
}

#[tokio::test]
async fn an_ordinary_upgrade_loses_nothing() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let mut relay = Some(started(&registry, settings(&broker.url())).await);
    let sent = publish_during(&sender, 1, async {
        for _ in 0..4 {
            alone(&registry).await;
            relay.take().unwrap().close().await;
            relay = Some(started(&registry, settings(&broker.url())).await);
        }
    })
    .await;
    let counts = collect(&service, sent).await;
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    relay.unwrap().close().await;
}

/// It has forgotten shared subscriptions then.
#[tokio::test]
async fn a_broker_that_restarts_loses_nothing_of_a_relay_that_is_alone() {
    let (mut broker, registry) = (Mosquitto::options().nodelay().persistence().start().await, registry().await);
    let egress = Mosquitto::start().await;
    let (_registration, service) = service(&registry, &egress).await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let mut settings = settings(&format!("mqtt://{}", proxy.address()));
    settings.egress = vec![egress.url().parse().unwrap()];
    let relay = started(&registry, settings).await;
    alone(&registry).await;
    for round in 0..3_usize {
        proxy.cut();
        broker.stop().await;
        broker.restart().await;
        let sender = paho(&broker).await;
        for number in round * 20..round * 20 + 20 {
            // 0: it is kept for somebody.
            assert_eq!(sender.publish(PahoMessage::new("/login/x", number.to_string()).qos(1)).await, 0);
        }
        proxy.mend();
    }
    collect(&service, 60).await;
    relay.close().await;
}

#[tokio::test]
async fn a_second_relay_with_the_code_touches_nothing() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let with_code = || {
        let mut settings = settings(&broker.url());
        settings.code = Some("relay-1".into());
        settings
    };
    let relay = started(&registry, with_code()).await;
    alone(&registry).await;
    let sent = publish_during(&sender, 1, async {
        for _ in 0..5 {
            let second = within(Relay::start(&registry, with_code(), Some("mqtt-balancer"), None)).await;
            assert!(matches!(second, Err(Error::Registry(pointsman::Error::DuplicateCode { .. }))), "{second:?}");
        }
    })
    .await;
    let counts = collect(&service, sent).await;
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
    relay.close().await;
}

#[tokio::test]
async fn what_was_left_to_the_next_start_is_found_whatever_slot_it_was_left_by() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let (_registration, service) = service(&registry, &broker).await;
    let sender = paho(&broker).await;
    let mut relays = Vec::new();
    for _ in 0..4 {
        relays.push(started(&registry, settings(&broker.url())).await);
    }
    // The one with the highest slot is the last.
    for relay in relays {
        relay.close().await;
    }
    for number in 0..20 {
        assert_eq!(sender.publish(PahoMessage::new("/login/x", number.to_string()).qos(1)).await, 0);
    }
    let relay = started(&registry, settings(&broker.url())).await;
    collect(&service, 20).await;
    relay.close().await;
}
