//! The relay between real brokers, with clients that are none of ours.

#![allow(clippy::unwrap_used)]

mod support;

use pointsman_mqtt::broker::{Broker, Options};
use pointsman_mqtt::relay::{Relay, Route, Settings};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{Fleet, RELAY, SOON, client, figures, service, settings};

#[tokio::test]
async fn a_message_goes_to_an_instance_under_its_code() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (service, sender) = (service(&broker, "svc-a").await, client(&broker).await);
    for qos in 0..3 {
        let topic = format!("/login/user/{RELAY}");
        let message = PahoMessage::new(&topic, format!("hello {qos}"))
            .qos(qos)
            .user_property("a", "b")
            .content_type("text/plain");
        sender.publish(message).await;
        let received = service.next_message(SOON).await;
        assert_eq!(
            (received.topic.as_str(), received.text(), received.qos),
            ("svc-a/login/user", &*format!("hello {qos}"), qos)
        );
        assert_eq!(received.content_type.as_deref(), Some("text/plain"));
        assert!(received.user_properties.contains(&("a".to_owned(), "b".to_owned())));
    }
    assert_eq!(figures(&relay).await.delivered, 3);
    relay.close().await;
}

#[tokio::test]
async fn a_request_is_answered() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let (_service, sender) = (service(&broker, "svc-a").await, client(&broker).await);
    sender.subscribe("inbox/1", 2).await;
    let topic = format!("/login/user/{RELAY}");
    sender.publish(PahoMessage::new(&topic, "q").response_topic("inbox/1").correlation_data([1, 2, 3])).await;
    let answer = sender.next_message(SOON).await;
    assert_eq!(
        (answer.topic.as_str(), answer.text(), answer.correlation_data.clone()),
        ("inbox/1", "svc-a:q", Some(vec![1, 2, 3]))
    );
    assert_eq!((figures(&relay).await.responses, figures(&relay).await.requests), (1, 0));
    relay.close().await;
}

#[tokio::test]
async fn the_relay_sits_inside_the_embedded_broker() {
    let broker = Broker::start(Options::new("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = broker.address().to_string();
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = Settings::new();
    (settings.code, settings.routes) = (Some(RELAY.into()), vec![Route::new("^/login(/|$)", "cfgs")]);
    let relay = Relay::start(settings, fleet.views(), fleet.changed(), Some(broker.handle())).unwrap();
    tokio::time::timeout(SOON, relay.ready()).await.unwrap().unwrap();
    let (service, sender) = (Paho::start().await, Paho::start().await);
    service.connect(PahoOptions::new(&address)).await;
    sender.connect(PahoOptions::new(&address).client_id("sender-1")).await;
    service.subscribe("svc-a/#", 2).await;
    service.echo(Echo::default().prefix("svc-a:")).await;
    sender.subscribe("inbox/1", 2).await;
    for qos in 0..3 {
        let topic = format!("/login/user/{RELAY}");
        let message = PahoMessage::new(&topic, "q").qos(qos).response_topic("inbox/1").correlation_data([qos]);
        sender.publish(message).await;
        let received = service.next_message(SOON).await;
        assert_eq!((received.topic.as_str(), received.qos), ("svc-a/login/user", qos));
        assert!(received.user_properties.contains(&("pointsman-client-id".to_owned(), "sender-1".to_owned())));
        let answer = sender.next_message(SOON).await;
        assert_eq!((answer.text(), answer.correlation_data.clone()), ("svc-a:q", Some(vec![qos])));
    }
    // Nobody listens any more: the sender's acknowledgement comes with the dead letter, and the error with it.
    service.disconnect().await;
    sender.subscribe("pointsman/dead-letter/#", 2).await;
    sender.publish(PahoMessage::new(&format!("/login/user/{RELAY}"), "q").qos(1)).await;
    let letter = sender.next_message(SOON).await;
    assert_eq!(letter.topic, format!("pointsman/dead-letter//login/user/{RELAY}"));
    relay.close().await;
    broker.close().await;
}

/// A will is a message like any other: the broker publishes it, and the relay relays it.
#[tokio::test]
async fn a_will_is_relayed_when_its_sender_has_died() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(settings(&broker)).await;
    let service = service(&broker, "svc-a").await;
    for (qos, retain) in [(0, false), (1, false), (2, false), (1, true)] {
        let will = PahoMessage::new(&format!("/login/gone/{RELAY}"), "farewell").qos(qos).user_property("a", "b");
        let will = if retain { will.retain() } else { will };
        let mut sender = Paho::start().await;
        sender.connect(PahoOptions::new(&broker.address()).will(will)).await;
        sender.kill();
        let received = service.next_message(SOON).await;
        assert_eq!((received.topic.as_str(), received.text(), received.qos), ("svc-a/login/gone", "farewell", qos));
        assert!(received.user_properties.contains(&("a".to_owned(), "b".to_owned())) && !received.retain);
    }
    relay.close().await;
}
