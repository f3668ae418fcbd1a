//! Between two masters: messages wait for the next one.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use pointsman_mqtt::relay::{Relay, Route, RouteRole, Settings};
use pointsman_testkit::{Mosquitto, Paho, PahoMessage};
use support::{
    Fleet, SOON, between, client, collect, connected, dead_letters, everyone, figures, master, normal, numbered,
    property, publish_all, service, until,
};

const LONG: Duration = Duration::from_secs(600);

/// `^/jobs(/|$)` is for the master of `cfgs`.
fn settings(broker: &Mosquitto, queue_timeout: Duration) -> Settings {
    let mut route = Route::new("^/jobs(/|$)", "cfgs");
    route.role = RouteRole::Master;
    let mut settings = between(&broker.url(), &broker.url(), vec![route, Route::new("^/any(/|$)", "cfgs")]);
    settings.queue_timeout = queue_timeout;
    settings
}

/// The master `svc-m` and the normal instance `svc-a`; the relay has sent a message to the master.
struct World {
    broker: Mosquitto,
    fleet: Fleet,
    relay: Relay,
    service: Paho,
    sender: Paho,
    dead: Paho,
}

impl World {
    async fn new(queue_timeout: Duration) -> Self {
        Self::with(|broker| settings(broker, queue_timeout)).await
    }

    async fn with(of: impl FnOnce(&Mosquitto) -> Settings) -> Self {
        let broker = Mosquitto::options().nodelay().start().await;
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        fleet.join("cfgs", master("cfgs", "svc-m"));
        let relay = fleet.relay(of(&broker)).await;
        let service = everyone(&broker, &["svc-a", "svc-b", "svc-m"]).await;
        let (sender, dead) = (client(&broker).await, dead_letters(&broker).await);
        let world = Self { broker, fleet, relay, service, sender, dead };
        world.sender.publish(PahoMessage::new("/jobs/x", "first")).await;
        assert_eq!(world.service.next_message(SOON).await.topic, "svc-m/jobs/x");
        until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
        world
    }

    async fn until_held(&self, count: u64) {
        until(&self.relay, "held", |figures| figures.in_flight == count).await;
    }
}

#[tokio::test]
async fn messages_wait_for_the_next_master_in_their_order() {
    let world = World::new(LONG).await;
    for (round, codes) in [["svc-m", "svc-b"], ["svc-b", "svc-a"]].into_iter().enumerate() {
        world.fleet.leave("cfgs", codes[0]);
        for qos in 0..3 {
            publish_all(&world.sender, numbered("/jobs/x", 10 * usize::from(qos)..10 * usize::from(qos) + 10, qos))
                .await;
        }
        world.until_held(30).await;
        // Who asks for no master does not wait.
        world.sender.publish(PahoMessage::new("/any", "any")).await;
        assert_eq!(world.service.next_message(SOON).await.text(), "any");
        // A change that brings no master releases nothing.
        world.fleet.join("cfgs", normal("cfgs", "svc-c"));
        world.fleet.join("cfgs", master("cfgs", codes[1]));
        let (numbers, again) = collect(&world.service, 30).await;
        assert_eq!((numbers, again), ((0..30).collect(), 0), "round {round}");
        let figures = until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!((figures.dead_letters, figures.dropped), (0, 0));
    }
    world.relay.close().await;
}

#[tokio::test]
async fn nobody_waits_longer_than_queue_timeout_and_who_never_had_a_master_does_not_wait() {
    let world = World::new(Duration::from_millis(300)).await;
    world.fleet.leave("cfgs", "svc-m");
    let start = std::time::Instant::now();
    for qos in 0..3 {
        world.sender.publish(PahoMessage::new("/jobs/x", "late").qos(qos)).await;
    }
    for _ in 0..3 {
        let letter = world.dead.next_message(SOON).await;
        assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"));
        assert_eq!(property(&letter, "pointsman-detail"), Some("pick the master of cfgs: there is none now"));
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    let figures = until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.received, figures.delivered, figures.dead_letters), (4, 1, 3));
    world.relay.close().await;

    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&world.broker, LONG)).await;
    world.sender.publish(PahoMessage::new("/jobs/x", "never")).await;
    assert_eq!(world.dead.next_message(SOON).await.text(), "never");
    relay.close().await;
}

#[tokio::test]
async fn a_queue_timeout_of_zero_turns_waiting_off() {
    let world = World::new(Duration::ZERO).await;
    world.fleet.leave("cfgs", "svc-m");
    world.sender.publish(PahoMessage::new("/jobs/x", "m")).await;
    assert_eq!(property(&world.dead.next_message(SOON).await, "pointsman-reason"), Some("no-instance"));
    world.relay.close().await;
}

#[tokio::test]
async fn what_a_master_that_has_just_gone_did_not_take_goes_to_the_next() {
    let world = World::new(LONG).await;
    // It has gone, and the registry does not know yet.
    world.service.unsubscribe("svc-m/#").await;
    publish_all(&world.sender, numbered("/jobs/x", 0..20, 1)).await;
    world.sender.subscribe("inbox", 1).await;
    world.sender.publish(PahoMessage::new("/jobs/x", "20").response_topic("inbox")).await;
    world.until_held(21).await;
    world.fleet.leave("cfgs", "svc-m");
    publish_all(&world.sender, numbered("/jobs/x", 21..30, 1)).await;
    world.until_held(30).await;
    world.fleet.join("cfgs", master("cfgs", "svc-b"));
    assert_eq!(collect(&world.service, 30).await, ((0..30).collect(), 0));
    let figures = until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.dead_letters, figures.redispatched, figures.requests), (0, 21, 1));
}

/// What the relay has sent to a master that is gone, and of which its broker says only later that nobody takes it, goes to the next
/// master before what came meanwhile: whether the next one is there before the broker speaks or after it.
#[tokio::test]
async fn messages_that_a_gone_master_refuses_late_are_not_overtaken() {
    for master_comes_first in [false, true] {
        let ingress = Mosquitto::options().nodelay().start().await;
        let egress = Mosquitto::options().nodelay().start().await;
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        fleet.join("cfgs", master("cfgs", "svc-m"));
        let mut settings = settings(&ingress, LONG);
        settings.egress = between(&ingress.url(), &egress.url(), Vec::new()).egress;
        let relay = fleet.relay(settings).await;
        let (service, sender) = (everyone(&egress, &["svc-a", "svc-b"]).await, client(&ingress).await);
        egress.pause();
        publish_all(&sender, numbered("/jobs/x", 0..25, 1)).await;
        until(&relay, "sent", |figures| figures.in_flight == 25).await;
        fleet.leave("cfgs", "svc-m");
        publish_all(&sender, numbered("/jobs/x", 25..50, 1)).await;
        until(&relay, "held", |figures| figures.in_flight == 50).await;
        if master_comes_first {
            fleet.join("cfgs", master("cfgs", "svc-b"));
            publish_all(&sender, numbered("/jobs/x", 50..60, 1)).await;
            until(&relay, "held behind them", |figures| figures.in_flight == 60).await;
            egress.resume();
        } else {
            egress.resume();
            // The broker has refused what it got before this.
            sender.publish(PahoMessage::new("/any", "any")).await;
            assert_eq!(service.next_message(SOON).await.text(), "any");
            until(&relay, "refused", |figures| figures.in_flight == 50).await;
            fleet.join("cfgs", master("cfgs", "svc-b"));
            publish_all(&sender, numbered("/jobs/x", 50..60, 1)).await;
        }
        assert_eq!(collect(&service, 60).await, ((0..60).collect(), 0), "the master comes first: {master_comes_first}");
        let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!((figures.dead_letters, figures.dropped), (0, 0));
        relay.close().await;
    }
}

/// A broker that says nothing about what a gone master has taken holds up the next one for `queue_timeout` at most.
#[tokio::test]
async fn a_silent_broker_is_waited_for_no_longer_than_queue_timeout() {
    let ingress = Mosquitto::options().nodelay().start().await;
    let egress = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    fleet.join("cfgs", master("cfgs", "svc-m"));
    let mut settings = settings(&ingress, Duration::from_millis(300));
    settings.egress = between(&ingress.url(), &egress.url(), Vec::new()).egress;
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&egress, &["svc-b"]).await, client(&ingress).await);
    egress.pause();
    sender.publish(PahoMessage::new("/jobs/x", "early")).await;
    until(&relay, "sent", |figures| figures.in_flight == 1).await;
    fleet.leave("cfgs", "svc-m");
    fleet.join("cfgs", master("cfgs", "svc-b"));
    sender.publish(PahoMessage::new("/jobs/x", "late")).await;
    until(&relay, "held", |figures| figures.in_flight == 2).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    egress.resume();
    // It was sent when the time was over: the broker takes it before it has refused the other.
    assert_eq!(service.next_message(SOON).await.text(), "late");
    assert_eq!(service.next_message(SOON).await.text(), "early");
    until(&relay, "idle", |figures| figures.in_flight == 0).await;
    relay.close().await;
}

#[tokio::test]
async fn a_master_that_takes_nothing_is_given_up_after_queue_timeout() {
    let world = World::new(Duration::from_millis(300)).await;
    world.service.unsubscribe("svc-m/#").await;
    world.sender.subscribe("inbox", 1).await;
    world.sender.publish(PahoMessage::new("/jobs/x", "m")).await;
    assert_eq!(property(&world.dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    world.sender.publish(PahoMessage::new("/jobs/x", "q").response_topic("inbox")).await;
    assert_eq!(property(&world.sender.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    assert_eq!(world.dead.next_message(SOON).await.text(), "q");
    let figures = until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.requests, figures.errors_told), (0, 1));
    world.relay.close().await;
}

#[tokio::test]
async fn a_request_that_may_be_sent_again_waits_for_the_next_master() {
    let world = World::with(|broker| {
        let mut settings = settings(broker, LONG);
        settings.routes[0].redispatch = true;
        settings
    })
    .await;
    let next = service(&world.broker, "svc-next").await;
    world.sender.subscribe("inbox", 1).await;
    world.sender.publish(PahoMessage::new("/jobs/x", "q").response_topic("inbox")).await;
    assert_eq!(world.service.next_message(SOON).await.text(), "q");
    until(&world.relay, "delivered", |figures| figures.delivered == 2).await;
    world.fleet.leave("cfgs", "svc-m");
    until(&world.relay, "held", |figures| (figures.in_flight, figures.requests) == (1, 1)).await;
    world.fleet.join("cfgs", master("cfgs", "svc-next"));
    assert_eq!(world.sender.next_message(SOON).await.text(), "svc-next:q");
    assert_eq!(next.next_message(SOON).await.topic, "svc-next/jobs/x");
    let figures = until(&world.relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.requests, figures.errors_told, figures.redispatched), (0, 0, 1));
    world.relay.close().await;
}

#[tokio::test]
async fn what_waits_is_bounded_by_what_may_be_under_way() {
    let world = World::with(|broker| {
        let mut settings = settings(broker, LONG);
        settings.max_in_flight = 10;
        settings
    })
    .await;
    world.fleet.leave("cfgs", "svc-m");
    publish_all(&world.sender, numbered("/jobs/x", 0..500, 1)).await;
    world.until_held(10).await;
    assert_eq!(figures(&world.relay).await.received, 11, "no more is taken");
    world.fleet.join("cfgs", master("cfgs", "svc-b"));
    assert_eq!(collect(&world.service, 500).await, ((0..500).collect(), 0));
    world.relay.close().await;
}

#[tokio::test]
async fn what_waits_when_the_relay_is_lost_or_leaves_is_not_lost() {
    let world = World::new(LONG).await;
    world.fleet.leave("cfgs", "svc-m");
    publish_all(&world.sender, numbered("/jobs/x", 0..20, 1)).await;
    world.until_held(20).await;
    // It leaves while they wait, and the master comes in time.
    let closing = tokio::spawn(world.relay.close());
    world.fleet.join("cfgs", master("cfgs", "svc-b"));
    closing.await.unwrap();
    assert_eq!(collect(&world.service, 20).await, ((0..20).collect(), 0));
    // It is killed while they wait: the broker still has them.
    let killed = support::Mortal::start(&world.fleet, settings(&world.broker, LONG)).await;
    world.sender.publish(PahoMessage::new("/jobs/x", "0")).await;
    collect(&world.service, 1).await;
    world.fleet.leave("cfgs", "svc-b");
    publish_all(&world.sender, numbered("/jobs/x", 0..20, 1)).await;
    until(killed.relay(), "held", |figures| figures.in_flight == 20).await;
    killed.kill();
    world.fleet.join("cfgs", master("cfgs", "svc-b"));
    let relay = world.fleet.relay(settings(&world.broker, LONG)).await;
    connected(&relay, &world.broker.address(), true).await;
    assert_eq!(collect(&world.service, 20).await.0, (0..20).collect::<Vec<_>>());
    relay.close().await;
}
