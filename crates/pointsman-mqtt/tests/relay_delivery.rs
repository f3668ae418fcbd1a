//! That nothing is lost, and nothing comes twice that should not.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use pointsman_mqtt::relay::{Route, Settings};
use pointsman_testkit::{CuttingProxy, Direction, Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{
    Fleet, Mortal, RELAY, SOON, between, client, collect, connected, dead_letters, everyone, figures, numbered,
    property, publish_all, rest, service, settings, until,
};

/// From `ingress` to the service behind `egress`, both `host:port`.
fn over(ingress: &str, egress: &str) -> Settings {
    between(&format!("mqtt://{ingress}"), &format!("mqtt://{egress}"), vec![Route::new("^/login(/|$)", "cfgs")])
}

fn topic() -> String {
    format!("/login/user/{RELAY}")
}

/// A client whose session outlives it, and that comes back by itself.
async fn lasting(broker: &Mosquitto, client_id: &str) -> Paho {
    let paho = Paho::start().await;
    let options = PahoOptions::new(&broker.address()).client_id(client_id).clean(false);
    paho.connect(options.session_expiry(Duration::from_secs(600)).max_inflight(0).reconnect()).await;
    paho
}

/// Publishes until the broker has said that somebody takes it.
async fn insist(sender: &Paho, messages: Vec<PahoMessage>) {
    for message in messages {
        let start = Instant::now();
        while sender.publish(message.clone()).await != 0 {
            assert!(start.elapsed() < SOON, "nobody takes {}", message.text());
            // A broker forgets shared subscriptions when it restarts; the relay renews them.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn quality_and_properties_pass_from_end_to_end() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&ingress.address(), &egress.address())).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    for qos in 0..3 {
        let message = PahoMessage::new(&topic(), [0, 255, qos])
            .qos(qos)
            .content_type("text/ü")
            .payload_format(0)
            .correlation_data([7, 0])
            .user_property("a", "1")
            .user_property("a", "2")
            .message_expiry(1000);
        sender.publish(message.clone()).await;
        let received = service.next_message(SOON).await;
        assert_eq!((received.qos, received.retain, received.dup), (qos, false, false));
        assert_eq!((received.topic.as_str(), &received.payload), ("svc-a/login/user", &message.payload));
        assert_eq!((&received.content_type, received.payload_format), (&message.content_type, Some(0)));
        assert_eq!((&received.correlation_data, received.response_topic), (&message.correlation_data, None));
        assert_eq!(received.user_properties[..2], message.user_properties);
        assert!(received.message_expiry.is_some_and(|left| (900..=1000).contains(&left)));
    }
    relay.close().await;
}

#[tokio::test]
async fn it_acknowledges_only_what_the_services_broker_has_taken_over() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let proxy = CuttingProxy::start(egress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let settings = over(&ingress.address(), &proxy.address());
    let relay = Mortal::start(&fleet, settings.clone()).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    proxy.blackhole();
    for qos in [1, 2] {
        publish_all(&sender, numbered(&topic(), (usize::from(qos) - 1) * 3..usize::from(qos) * 3, qos)).await;
    }
    until(relay.relay(), "all in flight", |figures| figures.in_flight == 6).await;
    relay.kill();
    // What the relay had sent never arrives.
    proxy.cut();
    proxy.mend();
    let relay = Mortal::start(&fleet, settings).await;
    assert_eq!(collect(&service, 6).await, ((0..6).collect(), 0));
    assert_eq!(rest(&service, &client(&egress).await, "svc-a").await, 0);
    until(relay.relay(), "idle", |figures| figures.in_flight == 0).await;
}

/// What happens to 500 numbered messages when a connection is cut in their middle, at a packet of a type, in a direction.
async fn cut(brokers: &[Mosquitto; 2], qos: u8, at_ingress: bool, direction: Direction, packet_type: u8) {
    const COUNT: usize = 500;
    let what = format!("QoS {qos}, ingress {at_ingress}, {direction:?} {packet_type}");
    let proxies = brokers.each_ref().map(|broker| CuttingProxy::start(broker.socket_address()));
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&proxies[0].address(), &proxies[1].address())).await;
    let (service, sender) = (everyone(&brokers[1], &["svc-a"]).await, client(&brokers[0]).await);
    publish_all(&sender, numbered(&topic(), 0..COUNT / 2, qos)).await;
    let proxy = &proxies[usize::from(!at_ingress)];
    let happens = proxy.cut_at_mqtt(direction, packet_type);
    publish_all(&sender, numbered(&topic(), COUNT / 2..COUNT, qos)).await;
    happens.happened().await;
    let (numbers, again) = collect(&service, COUNT).await;
    assert!(numbers.is_sorted(), "{what}: out of order: {numbers:?}");
    until(&relay, "idle", |figures| figures.in_flight == 0).await;
    relay.close().await;
    let again = again + rest(&service, &client(&brokers[1]).await, "svc-a").await;
    assert!(qos == 1 || again == 0, "{what}: {again} came twice");
    // At most what was on its way.
    assert!(again <= COUNT, "{what}: {again} came twice");
}

#[tokio::test]
async fn a_cut_at_any_step_of_the_exchange_with_the_senders_broker_loses_nothing() {
    let brokers = [Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await];
    let (to_server, to_client) = (Direction::ToServer, Direction::ToClient);
    for (qos, direction, packet_type) in [
        (1, to_client, 3),
        (1, to_server, 4),
        (2, to_client, 3),
        (2, to_server, 5),
        (2, to_client, 6),
        (2, to_server, 7),
    ] {
        cut(&brokers, qos, true, direction, packet_type).await;
    }
}

#[tokio::test]
async fn a_cut_at_any_step_of_the_exchange_with_the_services_broker_loses_nothing() {
    let brokers = [Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await];
    let (to_server, to_client) = (Direction::ToServer, Direction::ToClient);
    for (qos, direction, packet_type) in [
        (1, to_server, 3),
        (1, to_client, 4),
        (2, to_server, 3),
        (2, to_client, 5),
        (2, to_server, 6),
        (2, to_client, 7),
    ] {
        cut(&brokers, qos, false, direction, packet_type).await;
    }
}

/// 500 messages, at whose middle something happens to one of the brokers.
async fn restart(ingress: bool, gently: bool) {
    let mut brokers = [
        Mosquitto::options().nodelay().persistence().start().await,
        Mosquitto::options().nodelay().persistence().start().await,
    ];
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&brokers[0].address(), &brokers[1].address())).await;
    let (sender, service) = (lasting(&brokers[0], "sender").await, lasting(&brokers[1], "service").await);
    service.subscribe("svc-a/#", 2).await;
    let broker = usize::from(!ingress);
    let messages = numbered(&topic(), 0..500, 1);
    insist(&sender, messages[..200].to_vec()).await;
    if gently {
        let (_, ()) = tokio::join!(insist(&sender, messages[200..].to_vec()), async {
            brokers[broker].stop().await;
            brokers[broker].restart().await;
        });
    } else {
        // With what a broker has written to its disk: what it acknowledges and does not write is not the relay's to keep.
        if ingress {
            brokers[1].pause();
        }
        insist(&sender, messages[200..250].to_vec()).await;
        if !ingress {
            until(&relay, "all taken over", |figures| figures.delivered == 250 && figures.in_flight == 0).await;
        }
        brokers[broker].save().await;
        brokers[broker].kill();
        if !ingress {
            insist(&sender, messages[250..300].to_vec()).await;
        }
        brokers[broker].restart().await;
        brokers[1].resume();
        insist(&sender, messages[if ingress { 250 } else { 300 }..].to_vec()).await;
    }
    collect(&service, 500).await;
    until(&relay, "idle", |figures| figures.in_flight == 0).await;
    relay.close().await;
}

#[tokio::test]
async fn a_restart_of_the_senders_broker_loses_nothing() {
    restart(true, true).await;
}

#[tokio::test]
async fn a_kill_of_the_senders_broker_loses_nothing() {
    restart(true, false).await;
}

#[tokio::test]
async fn a_restart_of_the_services_broker_loses_nothing() {
    restart(false, true).await;
}

#[tokio::test]
async fn a_kill_of_the_services_broker_loses_nothing() {
    restart(false, false).await;
}

#[tokio::test]
async fn a_kill_of_the_relay_or_of_the_service_loses_nothing() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let settings = over(&ingress.address(), &egress.address());
    let mut relay = Mortal::start(&fleet, settings.clone()).await;
    let sender = lasting(&ingress, "sender").await;
    let mut service = lasting(&egress, "service").await;
    service.subscribe("svc-a/#", 2).await;
    let messages = numbered(&topic(), 0..500, 1);
    let mut seen = vec![0; 500];
    let publishing = insist(&sender, messages);
    let killing = async move {
        let mut count = 0;
        for round in 1..=4 {
            while count < round * 100 {
                let number: usize = service.next_message(SOON).await.text().parse().unwrap();
                seen[number] += 1;
                count += usize::from(seen[number] == 1);
            }
            if round % 2 == 0 {
                relay.kill();
                relay = Mortal::start(&fleet, settings.clone()).await;
            } else {
                service.kill();
                // What it has taken before it died.
                while let Some(message) = service.try_next_message(Duration::from_millis(100)).await {
                    let number: usize = message.text().parse().unwrap();
                    seen[number] += 1;
                    count += usize::from(seen[number] == 1);
                }
                service = lasting(&egress, "service").await;
            }
        }
        while count < 500 {
            let number: usize = service.next_message(SOON).await.text().parse().unwrap();
            seen[number] += 1;
            count += usize::from(seen[number] == 1);
        }
        relay
    };
    let ((), relay) = tokio::join!(publishing, killing);
    until(relay.relay(), "idle", |figures| figures.in_flight == 0).await;
}

#[tokio::test]
async fn a_broker_that_stands_still_holds_the_senders_back_and_nothing_is_dropped() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = over(&ingress.address(), &egress.address());
    settings.max_in_flight = 10;
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    egress.pause();
    // The senders' broker keeps what the relay does not take.
    publish_all(&sender, numbered(&topic(), 0..2000, 1)).await;
    until(&relay, "full", |figures| figures.in_flight == 10).await;
    assert_eq!(figures(&relay).await.received, 10);
    egress.resume();
    assert_eq!(collect(&service, 2000).await, ((0..2000).collect(), 0));
    assert_eq!(figures(&relay).await.dropped, 0);
    relay.close().await;
}

#[tokio::test]
async fn a_service_that_stands_still_loses_nothing() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = settings(&broker);
    settings.max_in_flight = 10;
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    service.pause();
    publish_all(&sender, numbered(&topic(), 0..500, 1)).await;
    until(&relay, "through", |figures| figures.delivered == 500 && figures.in_flight == 0).await;
    service.resume();
    assert_eq!(collect(&service, 500).await, ((0..500).collect(), 0));
    relay.close().await;
}

#[tokio::test]
async fn dead_letters_and_answers_need_no_room() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"]), ("nobody", &[])]);
    let mut settings = settings(&broker);
    settings.max_in_flight = 1;
    settings.routes.push(Route::new("^/nobody(/|$)", "nobody"));
    let relay = fleet.relay(settings).await;
    let (_service, sender, dead) =
        (service(&broker, "svc-a").await, client(&broker).await, dead_letters(&broker).await);
    sender.subscribe("inbox", 2).await;
    for qos in 0..3 {
        publish_all(&sender, numbered("/nobody/x", 0..50, qos)).await;
        assert_eq!(collect(&dead, 50).await, ((0..50).collect(), 0));
        let requests = numbered(&topic(), 0..50, qos).into_iter().map(|message| message.response_topic("inbox"));
        publish_all(&sender, requests).await;
        for number in 0..50 {
            assert_eq!(sender.next_message(SOON).await.text(), format!("svc-a:{number}"));
        }
    }
    relay.close().await;
}

#[tokio::test]
async fn what_has_no_route_is_a_dead_letter_with_its_reason() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &[])]);
    let mut settings = settings(&broker);
    settings.filters = vec!["/login/#".to_owned(), "/other/#".to_owned()];
    let relay = fleet.relay(settings).await;
    let (dead, sender) = (dead_letters(&broker).await, client(&broker).await);
    for (topic, reason, detail) in [
        ("/other/x", "no-route", "no route matches the topic"),
        ("/login/x", "no-instance", "pick an instance of cfgs: none is registered"),
    ] {
        for qos in 0..3 {
            let message = PahoMessage::new(topic, "x").qos(qos).content_type("c").user_property("a", "b").retain();
            assert_eq!(sender.publish(message).await, 0);
            let letter = dead.next_message(SOON).await;
            assert_eq!(letter.topic, format!("pointsman/dead-letter/{topic}"));
            assert_eq!((letter.text(), letter.qos, letter.retain), ("x", qos, false));
            assert_eq!(property(&letter, "pointsman-reason"), Some(reason));
            assert_eq!(property(&letter, "pointsman-detail"), Some(detail));
            assert_eq!((property(&letter, "a"), letter.content_type.as_deref()), (Some("b"), Some("c")));
        }
    }
    // Not kept for whoever subscribes later.
    let later = dead_letters(&broker).await;
    assert_eq!(rest(&later, &sender, "pointsman/dead-letter").await, 0);
    assert_eq!(figures(&relay).await.dead_letters, 6);
    relay.close().await;
}

#[tokio::test]
async fn where_nobody_listens_another_instance_gets_it() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b", "svc-c"])]);
    let mut settings = settings(&broker);
    settings.routes.push(Route::new("^m/nos", "cfgs"));
    let relay = fleet.relay(settings).await;
    let (service, sender, dead) =
        (everyone(&broker, &["svc-b"]).await, client(&broker).await, dead_letters(&broker).await);
    publish_all(&sender, numbered(&topic(), 0..30, 1)).await;
    assert_eq!(collect(&service, 30).await.1, 0);
    let before = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((before.delivered, before.dead_letters), (30, 0));
    assert!(before.redispatched > 0, "{before:?}");
    // Each is tried once.
    service.unsubscribe("svc-b/#").await;
    for topic in [topic(), format!("m/nos/{RELAY}")] {
        sender.publish(PahoMessage::new(&topic, "x").user_property("a", "b")).await;
        let letter = dead.next_message(SOON).await;
        // As the sender has called it.
        assert_eq!(letter.topic, format!("pointsman/dead-letter/{topic}"));
        assert_eq!((letter.text(), letter.qos, property(&letter, "a")), ("x", 1, Some("b")));
        assert_eq!(property(&letter, "pointsman-reason"), Some("no-subscriber"));
    }
    // Who has failed too often is not asked, so that it may be one instead of two.
    assert!(figures(&relay).await.redispatched >= before.redispatched + 2);
    relay.close().await;
}

#[tokio::test]
async fn time_counts_while_a_message_waits() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let proxy = CuttingProxy::start(egress.socket_address());
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&ingress.address(), &proxy.address())).await;
    let (service, sender) = (everyone(&egress, &["svc-a"]).await, client(&ingress).await);
    sender.subscribe("inbox", 1).await;
    proxy.cut();
    connected(&relay, &proxy.address(), false).await;
    for (text, expiry) in [("short", 1), ("long", 1000)] {
        for qos in 0..3 {
            sender.publish(PahoMessage::new(&topic(), text).qos(qos).message_expiry(expiry)).await;
        }
    }
    sender.publish(PahoMessage::new(&topic(), "short").message_expiry(1).response_topic("inbox")).await;
    until(&relay, "waiting", |figures| figures.in_flight == 7).await;
    // This is the time that is to pass.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    proxy.mend();
    for _ in 0..3 {
        let message = service.next_message(SOON).await;
        assert_eq!(message.text(), "long");
        assert!(message.message_expiry.is_some_and(|left| (900..=998).contains(&left)), "{message:?}");
    }
    let error = sender.next_message(SOON).await;
    assert_eq!(property(&error, "pointsman-reason"), Some("expired"));
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0 && figures.requests == 0).await;
    assert_eq!((figures.dropped, figures.delivered), (4, 3));
    assert_eq!(rest(&service, &client(&egress).await, "svc-a").await, 0);
    relay.close().await;
}

#[tokio::test]
async fn what_is_retained_is_passed_on_once_and_kept_by_the_senders_broker_alone() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let (service, sender) = (everyone(&broker, &["svc-a"]).await, client(&broker).await);
    sender.publish(PahoMessage::new("/login/old", "old").retain()).await;
    let relay = fleet.relay(settings(&broker)).await;
    sender.publish(PahoMessage::new("/login/new", "new").retain()).await;
    let message = service.next_message(SOON).await;
    assert_eq!((message.topic.as_str(), message.retain), ("svc-a/login/new", false));
    let later = everyone(&broker, &["svc-a"]).await;
    assert_eq!(rest(&later, &sender, "svc-a").await, 0);
    assert_eq!(rest(&service, &sender, "svc-a").await, 0);
    relay.close().await;
}

/// It connects anew, or its broker has lost its session.
#[tokio::test]
async fn what_is_for_an_instance_that_is_away_for_a_moment_is_held() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = settings(&broker);
    settings.away_timeout = SOON;
    let relay = fleet.relay(settings.clone()).await;
    let (sender, dead) = (client(&broker).await, dead_letters(&broker).await);
    let service = client(&broker).await;
    tokio::join!(publish_all(&sender, numbered("/login/x", 0..10, 1)), async {
        until(&relay, "held", |figures| figures.received == 10 && figures.in_flight == 10).await;
        // The sender of a request is told at once.
        sender.subscribe("inbox", 1).await;
        sender.publish(PahoMessage::new("/login/x", "q").qos(1).response_topic("inbox")).await;
        assert_eq!(property(&sender.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
        assert_eq!(dead.next_message(SOON).await.text(), "q");
        service.subscribe("svc-a/#", 1).await;
    });
    assert_eq!(collect(&service, 10).await.1, 0);
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!(figures.dead_letters, 1);
    relay.close().await;

    // Not for ever, and not for one that is not registered.
    service.unsubscribe("svc-a/#").await;
    settings.away_timeout = Duration::from_millis(200);
    let relay = fleet.relay(settings).await;
    sender.publish(PahoMessage::new("/login/x", "late").qos(1)).await;
    assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-subscriber"));
    fleet.leave("cfgs", "svc-a");
    sender.publish(PahoMessage::new("/login/x", "nobody").qos(1)).await;
    assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-instance"));
    relay.close().await;
}
