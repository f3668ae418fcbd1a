//! A mastership that is handed over costs no message.

use std::time::Duration;

use futures_util::future::join_all;
use pointsman::mqtt::broker::{Broker, Options};
use pointsman::mqtt::{Client, Qos, Relay, RouteRole, Service, Settings};
use pointsman::{Instance, Registry};
use pointsman_testkit::{Mosquitto, Paho, PahoMessage, PahoOptions, ZooKeeper, unique_prefix};

use crate::support::{SOON, registry, route, started, within};

const CODES: [&str; 3] = ["svc-a", "svc-b", "svc-c"];

/// What is sent to `/login` is for the master of `cfgs`.
fn settings() -> Settings {
    let mut settings = Settings::new();
    settings.routes = vec![route()];
    settings.routes[0].role = RouteRole::Master;
    settings.queue_timeout = Duration::from_secs(10);
    settings
}

async fn paho(address: &str, filters: &[&str]) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(address)).await;
    for filter in filters {
        paho.subscribe(filter, 1).await;
    }
    paho
}

/// How a master gives its place up.
#[derive(Clone, Copy)]
enum HandOver {
    Resign,
    /// It deregisters, and registers again.
    Leave,
}

/// The mastership goes round among three instances, again and again, while messages are sent to the master: all arrive, in their order.
async fn goes_round(registry: &Registry, relay: Relay, address: &str, how: HandOver) {
    let mut registrations = Vec::new();
    for code in CODES {
        registrations.push(registry.register(Instance::new("cfgs").code(code)).await.unwrap());
    }
    let cfgs = registry.discover("cfgs").await.unwrap();
    within(cfgs.wait_for(|snapshot| snapshot.instances().len() == 3 && snapshot.master().is_some())).await.unwrap();
    let services = paho(address, &["svc-a/#", "svc-b/#", "svc-c/#"]).await;
    let (sender, dead) = (paho(address, &[]).await, paho(address, &["pointsman/dead-letter/#"]).await);
    let mut sent = 0;
    for round in 0..12_usize {
        let messages = (sent..sent + 100).map(|number: usize| {
            sender.publish(PahoMessage::new("/login/x", number.to_string()).qos(u8::try_from(number % 3).unwrap()))
        });
        sent += 100;
        let hand_over = async {
            let master = cfgs.snapshot().master().map(|master| master.code.clone());
            let place = registrations.iter().position(|one| Some(&one.instance().code) == master.as_ref());
            // Between two masters there is none that could give its place up.
            let Some(place) = place else { return };
            match how {
                HandOver::Resign => match registrations[place].resign().await {
                    Ok(()) | Err(pointsman::Error::NotMaster { .. }) => {}
                    Err(error) => panic!("round {round}: {error}"),
                },
                HandOver::Leave => {
                    let registration = registrations.remove(place);
                    let instance = std::sync::Arc::unwrap_or_clone(registration.instance());
                    registration.close().await.unwrap();
                    registrations.push(registry.register(instance).await.unwrap());
                }
            }
        };
        within(async { tokio::join!(join_all(messages), hand_over) }).await;
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut at = std::collections::BTreeSet::new();
    while seen.len() < sent {
        let Some(message) = services.try_next_message(SOON).await else {
            let lost = (0..sent).filter(|number| !seen.contains(number)).count();
            panic!("{lost} of {sent} are lost: {:?}", relay.figures().await);
        };
        seen.insert(message.text().parse::<usize>().unwrap());
        at.insert(message.topic.split('/').next().unwrap().to_owned());
    }
    assert!(at.len() > 1, "the mastership has moved: {at:?}");
    assert_eq!(relay.figures().await.unwrap().dead_letters, 0);
    assert!(dead.try_next_message(Duration::ZERO).await.is_none());
    relay.close().await;
}

#[tokio::test]
async fn by_resigning_over_mosquitto() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let mut settings = settings();
    settings.ingress = Some(broker.url().parse().unwrap());
    let relay = started(&registry, settings).await;
    goes_round(&registry, relay, &broker.address(), HandOver::Resign).await;
}

#[tokio::test]
async fn by_resigning_over_the_embedded_broker() {
    let registry = registry().await;
    let broker = Broker::start(Options::new(([127, 0, 0, 1], 0).into())).await.unwrap();
    let mut relay = Relay::start(&registry, settings(), Some("mqtt-balancer"), Some(&broker)).await.unwrap();
    within(relay.ready()).await.unwrap();
    goes_round(&registry, relay, &broker.address().to_string(), HandOver::Resign).await;
    broker.close().await;
}

/// With a moment between two masters, and the former one at the end of the row.
#[tokio::test]
async fn by_leaving_over_zookeeper() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (zookeeper, prefix) = (ZooKeeper::shared().await, unique_prefix());
    let registry = Registry::connect(&format!("zookeeper://{}{prefix}", zookeeper.address())).await.unwrap();
    let mut settings = settings();
    settings.ingress = Some(broker.url().parse().unwrap());
    let relay = started(&registry, settings).await;
    goes_round(&registry, relay, &broker.address(), HandOver::Leave).await;
}

/// Each master in turn is closed, as by SIGTERM, while messages are sent to it; the next one is there already.
#[tokio::test]
async fn by_closing_the_master() {
    let (broker, registry) = (Mosquitto::options().nodelay().start().await, registry().await);
    let mut settings = settings();
    settings.ingress = Some(broker.url().parse().unwrap());
    let relay = started(&registry, settings).await;
    let service = |code: &'static str| {
        let builder =
            Service::builder(&registry, Instance::new("cfgs").code(code)).broker(broker.url().parse().unwrap());
        let builder = builder.on("/login/#", |_| async { Ok("") });
        async move { within(builder.start()).await.unwrap() }
    };
    let cfgs = registry.discover("cfgs").await.unwrap();
    let client = within(Client::builder(&registry, "mqtt-balancer").start()).await.unwrap();
    let mut current = service("svc-0").await;
    let mut handled = 0;
    for next in ["svc-1", "svc-2", "svc-3"] {
        let follower = service(next).await;
        within(cfgs.wait_for(|snapshot| {
            snapshot.instances().len() == 2 && snapshot.master().is_some_and(|master| &*master.code != next)
        }))
        .await
        .unwrap();
        within(client.publish("/login/x", "before", Qos::AtLeastOnce)).await.unwrap();
        let closing = tokio::spawn(current.close());
        let mut sent = 0;
        while !closing.is_finished() {
            within(client.publish("/login/x", "while it leaves", Qos::AtLeastOnce)).await.unwrap();
            sent += 1;
        }
        closing.await.unwrap().unwrap();
        assert!(sent > 0);
        handled += sent + 1;
        let figures = relay.figures().await.unwrap();
        assert_eq!(figures.dead_letters, 0, "{next}: {figures:?}");
        current = follower;
    }
    assert_eq!(relay.figures().await.unwrap().received, handled);
    within(client.close()).await;
    within(current.close()).await.unwrap();
    relay.close().await;
}

#[tokio::test]
async fn a_service_resigns_and_goes_on() {
    let (broker, registry) = (Mosquitto::start().await, registry().await);
    let mut services = Vec::new();
    for code in ["svc-a", "svc-b"] {
        let service =
            Service::builder(&registry, Instance::new("cfgs").code(code)).broker(broker.url().parse().unwrap());
        services.push(crate::support::start(crate::support::echo(service, "/login/#", code)).await);
    }
    let cfgs = registry.discover("cfgs").await.unwrap();
    let is_master = |code: &'static str| {
        move |snapshot: &pointsman::Snapshot| snapshot.master().is_some_and(|master| &*master.code == code)
    };
    within(cfgs.wait_for(is_master("svc-a"))).await.unwrap();
    within(services[0].resign()).await.unwrap();
    within(cfgs.wait_for(is_master("svc-b"))).await.unwrap();
    let again = within(services[0].resign()).await;
    let not_master = matches!(again, Err(pointsman::mqtt::Error::Registry(pointsman::Error::NotMaster { .. })));
    assert!(not_master, "{again:?}");
    assert!(cfgs.snapshot().find("svc-a").is_some(), "it is still there");
    for service in services {
        within(service.close()).await.unwrap();
    }
}
