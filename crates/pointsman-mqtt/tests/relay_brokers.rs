//! One broker for both sides, or several; one relay, or several.

#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::time::Duration;

use pointsman_core::Instance;
use pointsman_mqtt::relay::{Relay, Route, Settings};
use pointsman_testkit::{CuttingProxy, Mosquitto, PahoMessage};
use support::{
    Fleet, Mortal, RELAY, SOON, between, client, collect, connected, dead_letters, everyone, figures, numbered,
    observed, property, publish_all, rest, settings, until,
};

async fn broker() -> Mosquitto {
    Mosquitto::options().nodelay().start().await
}

#[tokio::test]
async fn each_instance_is_reached_at_its_own_broker() {
    let (ingress, first, second, third) = (broker().await, broker().await, broker().await, broker().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    fleet.join("cfgs", observed(Instance::with_code("cfgs", "svc-b").tag("broker", second.address())));
    fleet.join("cfgs", observed(Instance::with_code("cfgs", "svc-c").address(third.address())));
    fleet.join("cfgs", observed(Instance::with_code("cfgs", "svc-d").tag("broker", "127.0.0.1:1")));
    let mut settings = between(&ingress.url(), &first.url(), vec![Route::new("^/login(/|$)", "cfgs")]);
    settings.egress.extend([&second, &third].map(|broker| broker.url().parse().unwrap()));
    let relay = fleet.relay(settings).await;
    let all = ["svc-a", "svc-b", "svc-c", "svc-d"];
    let listeners = [everyone(&first, &all).await, everyone(&second, &all).await, everyone(&third, &all).await];
    for listener in &listeners {
        listener.echo(pointsman_testkit::Echo::default()).await;
    }
    let sender = client(&ingress).await;
    sender.subscribe("inbox", 1).await;
    let requests = numbered("/login", 0..40, 1).into_iter().map(|message| message.response_topic("inbox"));
    publish_all(&sender, requests).await;
    collect(&sender, 40).await;
    for (index, codes) in [&["svc-a", "svc-d"][..], &["svc-b"], &["svc-c"]].into_iter().enumerate() {
        for _ in 0..codes.len() * 10 {
            let message = listeners[index].next_message(SOON).await;
            assert!(codes.contains(&message.topic.split('/').next().unwrap()), "{message:?}");
        }
    }
    assert_eq!(figures(&relay).await.responses, 40);
    relay.close().await;
}

/// A relay of a group on one broker.
fn member(broker: &Mosquitto, number: usize) -> Settings {
    let mut settings = settings(broker);
    settings.code = Some(format!("{number:08}-529c-4752-a264-553aa0c7f989").into());
    settings
}

async fn group(fleet: &Fleet, broker: &Mosquitto, count: usize) -> Vec<Relay> {
    let mut relays = Vec::new();
    for number in 0..count {
        relays.push(fleet.relay(member(broker, number)).await);
    }
    relays
}

#[tokio::test]
async fn relays_of_one_group_share_the_messages() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for count in [2, 3] {
        let relays = group(&fleet, &broker, count).await;
        for qos in 0..3 {
            publish_all(&sender, numbered("/login/x", 0..120, qos)).await;
            assert_eq!(collect(&service, 120).await.1, 0);
            assert_eq!(rest(&service, &sender, "svc-a").await, 0);
        }
        for relay in relays {
            // Each has its share.
            assert!(figures(&relay).await.delivered >= 90);
            relay.close().await;
        }
    }
}

#[tokio::test]
async fn another_group_gets_its_own() {
    let broker = broker().await;
    let (one, other) = (Fleet::new(&[("cfgs", &["svc-a"])]), Fleet::new(&[("cfgs", &["svc-b"])]));
    let relay = one.relay(settings(&broker)).await;
    let mut elsewhere = member(&broker, 1);
    elsewhere.group = "audit".to_owned();
    let second = other.relay(elsewhere).await;
    let (service, sender) = (everyone(&broker, &["svc-a", "svc-b"]).await, client(&broker).await);
    publish_all(&sender, numbered("/login/x", 0..20, 2)).await;
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(service.next_message(SOON).await.topic);
    }
    assert_eq!(codes.iter().filter(|topic| *topic == "svc-a/login/x").count(), 20);
    relay.close().await;
    second.close().await;
}

#[tokio::test]
async fn a_relay_that_leaves_its_group_takes_nothing_along() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for qos in [1, 2] {
        let mut relays = group(&fleet, &broker, 3).await;
        let (closed, second) = (relays.remove(0), relays.remove(0));
        tokio::join!(publish_all(&sender, numbered("/login/x", 0..600, qos)), async {
            until(&closed, "in the middle", |figures| figures.received >= 50).await;
            closed.leave_group().await;
            until(&second, "in the middle", |figures| figures.received >= 100).await;
            second.leave_group().await;
        });
        assert_eq!(collect(&service, 600).await.1, 0, "QoS {qos}");
        assert_eq!(rest(&service, &sender, "svc-a").await, 0);
        relays.remove(0).close().await;
    }
}

#[tokio::test]
async fn a_relay_that_dies_in_its_group_has_its_messages_when_it_is_back() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let living = fleet.relay(member(&broker, 0)).await;
    let mortal = Mortal::start(&fleet, member(&broker, 1)).await;
    tokio::join!(publish_all(&sender, numbered("/login/x", 0..400, 1)), async {
        until(mortal.relay(), "in the middle", |figures| figures.received >= 50).await;
        mortal.kill();
        let _mortal = Mortal::start(&fleet, member(&broker, 1)).await;
        collect(&service, 400).await;
    });
    living.close().await;
}

#[tokio::test]
async fn relays_may_stand_one_behind_the_other() {
    let (first, second) = (broker().await, broker().await);
    // The second relay is an instance of the first one's service.
    let (front, back) = (Fleet::new(&[("relays", &["relay-b"])]), Fleet::new(&[("cfgs", &["svc-a"])]));
    let relay_a = front.relay(between(&first.url(), &second.url(), vec![Route::new("^/login(/|$)", "relays")])).await;
    let mut behind = between(&second.url(), &second.url(), vec![Route::new("^relay-b/login(/|$)", "cfgs")]);
    behind.code = Some("relay-b".into());
    behind.response_topics = vec!["pointsman/reply/#".to_owned()];
    let relay_b = back.relay(behind).await;
    let (service, sender) = (support::service(&second, "svc-a").await, client(&first).await);
    sender.subscribe("inbox", 2).await;
    for qos in 0..3 {
        sender.publish(PahoMessage::new("/login/x", "q").qos(qos).response_topic("inbox")).await;
        let message = service.next_message(SOON).await;
        assert_eq!((message.topic.as_str(), message.qos), ("svc-a/relay-b/login/x", qos));
        let hops: Vec<&str> =
            message.user_properties.iter().filter(|(k, _)| k == "pointsman-relay").map(|(_, v)| v.as_str()).collect();
        // The second, with one broker on both sides, has no need to leave its mark.
        assert_eq!(hops, [RELAY]);
        assert_eq!(sender.next_message(SOON).await.text(), "svc-a:q");
    }
    relay_a.close().await;
    relay_b.close().await;
}

#[tokio::test]
async fn two_relays_that_send_to_each_other_stop() {
    let (first, second) = (broker().await, broker().await);
    let (there, back) = (Fleet::new(&[("x", &["code-x"])]), Fleet::new(&[("y", &["code-y"])]));
    let everything = |ingress: &Mosquitto, egress: &Mosquitto, service: &str, code: &str| {
        let mut settings = between(&ingress.url(), &egress.url(), vec![Route::new("login", service)]);
        settings.code = Some(code.into());
        settings
    };
    let relay_there = there.relay(everything(&first, &second, "x", "relay-there")).await;
    let relay_back = back.relay(everything(&second, &first, "y", "relay-back")).await;
    let (sender, dead) = (client(&first).await, dead_letters(&first).await);
    sender.publish(PahoMessage::new("/login", "m").qos(2)).await;
    let letter = dead.next_message(SOON).await;
    assert_eq!(letter.topic, "pointsman/dead-letter/code-y/code-x/login");
    assert_eq!(property(&letter, "pointsman-reason"), Some("loop"));
    // Not even the dead letter is relayed, nor what anybody else publishes there.
    sender.publish(PahoMessage::new("pointsman/login", "m").qos(2)).await;
    for relay in [relay_there, relay_back] {
        let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
        assert_eq!(figures.delivered, 1);
        relay.close().await;
    }
    assert_eq!(rest(&dead, &sender, "pointsman/dead-letter").await, 0);
}

#[tokio::test]
async fn what_a_relay_has_sent_is_not_sent_again() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = settings(&broker);
    settings.filters = ["/login/#", "svc-a/#", "pointsman/#"].map(str::to_owned).to_vec();
    settings.routes.push(Route::new("", "cfgs"));
    let relay = fleet.relay(settings).await;
    let (sender, dead) = (client(&broker).await, dead_letters(&broker).await);
    let hop = |code: &str, message: PahoMessage| message.user_property("pointsman-relay", code);
    let eight = (0..8).fold(PahoMessage::new("/login", ""), |message, number| hop(&format!("relay-{number}"), message));
    for message in [hop(RELAY, PahoMessage::new("/login", "")), PahoMessage::new("svc-a/login", ""), eight] {
        let topic = message.topic.clone();
        sender.publish(message).await;
        let letter = dead.next_message(SOON).await;
        assert_eq!(letter.topic, format!("pointsman/dead-letter/{topic}"));
        assert_eq!(property(&letter, "pointsman-reason"), Some("loop"));
    }
    // Its own dead letters come back to it and are let be; so is everything under pointsman/. What it sends is stopped.
    sender.publish(PahoMessage::new("pointsman/x", "")).await;
    let service = everyone(&broker, &["svc-a"]).await;
    sender.publish(hop("relay-1", PahoMessage::new("/login/y", ""))).await;
    assert_eq!(service.next_message(SOON).await.topic, "svc-a/login/y");
    assert_eq!(dead.next_message(SOON).await.topic, "pointsman/dead-letter/svc-a/login/y");
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.delivered, figures.dead_letters), (1, 4));
    relay.close().await;
}

#[tokio::test]
async fn a_broker_that_is_away_does_not_hold_the_others_up() {
    let (ingress, first, second) = (broker().await, broker().await, broker().await);
    let proxy = CuttingProxy::start(second.socket_address());
    let fleet = Fleet::new(&[("x", &["svc-a"]), ("y", &[])]);
    fleet.join("y", observed(Instance::with_code("y", "svc-b").tag("broker", proxy.address())));
    let routes = vec![Route::new("^/x(/|$)", "x"), Route::new("^/y(/|$)", "y")];
    let mut settings = between(&ingress.url(), &first.url(), routes);
    settings.egress.push(format!("mqtt://{}", proxy.address()).parse().unwrap());
    let relay = fleet.relay(settings).await;
    let (here, there, sender) =
        (everyone(&first, &["svc-a"]).await, everyone(&second, &["svc-b"]).await, client(&ingress).await);
    proxy.cut();
    connected(&relay, &proxy.address(), false).await;
    publish_all(&sender, numbered("/y", 0..50, 1)).await;
    publish_all(&sender, numbered("/x", 0..50, 2)).await;
    assert_eq!(collect(&here, 50).await, ((0..50).collect(), 0));
    assert_eq!(there.try_next_message(Duration::from_millis(10)).await, None);
    proxy.mend();
    assert_eq!(collect(&there, 50).await, ((0..50).collect(), 0));
    relay.close().await;
}

/// A mosquitto that is restarted has forgotten shared subscriptions, and acknowledges what nobody gets.
#[tokio::test]
async fn a_relay_that_is_alone_loses_nothing_while_its_broker_restarts() {
    let mut broker = Mosquitto::options().nodelay().persistence().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let egress = self::broker().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let ingress = format!("mqtt://{}", proxy.address());
    let mut settings = between(&ingress, &egress.url(), vec![Route::new("^/login(/|$)", "cfgs")]);
    settings.shared = false;
    let relay = fleet.relay(settings).await;
    let service = everyone(&egress, &["svc-a"]).await;
    for round in 0..3 {
        proxy.cut();
        connected(&relay, &proxy.address(), false).await;
        broker.stop().await;
        broker.restart().await;
        let sender = client(&broker).await;
        publish_all(&sender, numbered("/login/x", round * 50..round * 50 + 50, 1)).await;
        proxy.mend();
    }
    assert_eq!(collect(&service, 150).await.1, 0);
    relay.close().await;
}

#[tokio::test]
async fn a_relay_goes_from_alone_to_its_group_and_back_without_loss_or_double() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let mut settings = member(&broker, 0);
    settings.shared = false;
    let first = fleet.relay(settings).await;
    for qos in 0..3 {
        let (mut sent, changing) = (0, Cell::new(true));
        let publishing = async {
            while changing.get() {
                publish_all(&sender, numbered("/login/x", sent..sent + 50, qos)).await;
                sent += 50;
            }
        };
        tokio::join!(publishing, async {
            for _ in 0..5 {
                first.share(true).await.unwrap();
                let second = fleet.relay(member(&broker, 1)).await;
                until(&second, "having a share", |figures| figures.received >= 20).await;
                second.leave_group().await;
                first.share(false).await.unwrap();
                let begun = figures(&first).await.received;
                until(&first, "further", |figures| figures.received > begun + 20).await;
            }
            changing.set(false);
        });
        let (numbers, again) = collect(&service, sent).await;
        assert_eq!((numbers.len(), again), (sent, 0), "QoS {qos}");
        assert_eq!(rest(&service, &sender, "svc-a").await, 0);
    }
    first.close().await;
}

#[tokio::test]
async fn what_was_kept_for_a_relay_that_is_gone_is_passed_on_by_another() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    for shared in [true, false] {
        let mut dead = member(&broker, 1);
        dead.shared = shared;
        let mortal = Mortal::start(&fleet, dead.clone()).await;
        tokio::join!(publish_all(&sender, numbered("/login/x", 0..400, 1)), async {
            until(mortal.relay(), "in the middle", |figures| figures.received >= 50).await;
            mortal.kill();
        });
        let inherited = Relay::inherit(member(&broker, 1), fleet.views(), fleet.changed());
        tokio::time::timeout(SOON, inherited).await.unwrap().unwrap();
        collect(&service, 400).await;
        // Nothing is left there, and nothing is kept for it any more.
        let inherited = Relay::inherit(member(&broker, 1), fleet.views(), fleet.changed());
        tokio::time::timeout(SOON, inherited).await.unwrap().unwrap();
        assert_eq!(sender.publish(PahoMessage::new("/login/x", "nobody").qos(1)).await, 0x10);
    }
}

#[tokio::test]
async fn a_relay_that_lives_keeps_its_session() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    let relay = fleet.relay(member(&broker, 1)).await;
    for round in 0..3 {
        tokio::join!(publish_all(&sender, numbered("/login/x", 0..200, 1)), async {
            until(&relay, "in the middle", |figures| figures.received >= 200 * round + 50).await;
            let inherited = Relay::inherit(member(&broker, 1), fleet.views(), fleet.changed());
            tokio::time::timeout(SOON, inherited).await.unwrap().unwrap();
        });
        tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
        // What was sent to nobody meanwhile was acknowledged as such; the rest comes at least once.
        sender.publish(PahoMessage::new("/login/x", "end").qos(1)).await;
        service.messages_until(|message| message.text() == "end", SOON).await;
    }
    relay.close().await;
}
