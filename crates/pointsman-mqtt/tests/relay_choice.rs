//! The one ordered choice, `docs/choosing.md`, as messages see it.

#![allow(clippy::unwrap_used)]

mod support;

use pointsman_mqtt::relay::{Route, RouteRole};
use pointsman_testkit::{Mosquitto, PahoMessage};
use support::{Fleet, SOON, between, client, dead_letters, everyone, master, property};

/// A route to the master, `^/master/`, one to the normal instances, `^/normal/`, and one that is sticky, `^/sticky/`.
fn routes() -> Vec<Route> {
    let mut routes = ["^/master/", "^/normal/", "^/sticky/"].map(|pattern| Route::new(pattern, "cfgs"));
    routes[0].role = RouteRole::Master;
    routes[2].sticky = true;
    routes.to_vec()
}

#[tokio::test]
async fn failures_of_the_master_count_whoever_asks_for_it() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
    let (service, sender, dead) =
        (everyone(&broker, &["svc-a"]).await, client(&broker).await, dead_letters(&broker).await);
    for _ in 0..5 {
        sender.publish(PahoMessage::new("/master/x", "")).await;
        assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    }
    // It is ejected: a sender that would stay with it is served by another.
    service.subscribe("svc-m/#", 1).await;
    sender.publish(PahoMessage::new("/sticky/x/svc-m", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-a/sticky/x");
    // Who wants the master has no other.
    sender.publish(PahoMessage::new("/master/x", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-m/master/x");
    relay.close().await;
}

#[tokio::test]
async fn a_message_that_no_normal_instance_takes_goes_to_the_master() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let relay = fleet.relay(between(&broker.url(), &broker.url(), routes())).await;
    let (service, sender) = (everyone(&broker, &["svc-m"]).await, client(&broker).await);
    sender.publish(PahoMessage::new("/normal/x", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-m/normal/x");
    assert_eq!(support::figures(&relay).await.redispatched, 2);
    relay.close().await;
}

#[tokio::test]
async fn what_is_the_senders_fault_is_no_failure_of_the_instance() {
    let ingress = Mosquitto::options().nodelay().start().await;
    let egress = Mosquitto::options().nodelay().set("max_packet_size", "20000").start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    let relay = fleet.relay(between(&ingress.url(), &egress.url(), routes())).await;
    let (service, sender) = (everyone(&egress, &["svc-a", "svc-b"]).await, client(&ingress).await);
    sender.subscribe("inbox", 1).await;
    for _ in 0..5 {
        let request = PahoMessage::new("/sticky/x/svc-a", "x".repeat(30_000)).response_topic("inbox");
        sender.publish(request).await;
        assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("too-large"));
    }
    sender.publish(PahoMessage::new("/sticky/x/svc-a", "")).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-a/sticky/x", "it was not ejected");
    relay.close().await;
}
