//! The relay between real brokers, with clients that are none of ours.

#![allow(clippy::unwrap_used)]

mod support;

use pointsman_testkit::{Mosquitto, PahoMessage};
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
