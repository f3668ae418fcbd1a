//! Requests find their answers, or their senders are told why not (defect 20).

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant, SystemTime};

use pointsman_core::ObservedInstance;
use pointsman_mqtt::relay::{Route, Settings};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{
    Fleet, RELAY, SOON, between, client, dead_letters, everyone, figures, property, publish_all, rest, service,
    settings, until,
};

async fn brokers() -> [Mosquitto; 2] {
    [Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await]
}

fn over(brokers: &[Mosquitto; 2]) -> Settings {
    between(&brokers[0].url(), &brokers[1].url(), vec![Route::new("^/login(/|$)", "cfgs")])
}

fn request(text: &str) -> PahoMessage {
    PahoMessage::new(&format!("/login/user/{RELAY}"), text).response_topic("inbox").correlation_data([0, 255])
}

/// A client with an inbox.
async fn asking(broker: &Mosquitto) -> Paho {
    let sender = client(broker).await;
    sender.subscribe("inbox/#", 2).await;
    sender
}

/// Looks at an error, and returns its reason and its detail.
fn error(message: &PahoMessage) -> (&str, &str) {
    assert_eq!(message.topic, "inbox");
    assert_eq!(message.correlation_data.as_deref(), Some(&[0, 255][..]));
    assert_eq!(message.content_type.as_deref(), Some("application/problem+json"));
    let (reason, detail) =
        (property(message, "pointsman-reason").unwrap(), property(message, "pointsman-detail").unwrap());
    let expected = format!(r#"{{"type":"about:blank","title":"{reason}","detail":"{detail}"}}"#);
    assert_eq!(message.text(), expected);
    (reason, detail)
}

#[tokio::test]
async fn requests_are_answered_across_two_brokers() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&brokers)).await;
    let (service, sender) = (service(&brokers[1], "svc-a").await, asking(&brokers[0]).await);
    for (qos, answer_qos) in [(0, 2), (1, 0), (2, 1), (1, 2)] {
        service.echo(Echo::default().prefix("a:").qos(answer_qos)).await;
        sender.publish(request("q").qos(qos)).await;
        let question = service.next_message(SOON).await;
        // Where the answer comes back to is the relay's secret; the rest is the sender's.
        assert!(question.response_topic.unwrap().starts_with(&format!("pointsman/reply/{RELAY}/")));
        assert_eq!((question.qos, question.correlation_data.as_deref()), (qos, Some(&[0, 255][..])));
        let answer = sender.next_message(SOON).await;
        assert_eq!((answer.topic.as_str(), answer.text(), answer.qos), ("inbox", "a:q", answer_qos));
        assert_eq!(answer.correlation_data.as_deref(), Some(&[0, 255][..]));
    }
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.responses, figures.requests, figures.errors_told), (4, 0, 0));
    relay.close().await;
}

#[tokio::test]
async fn many_requests_find_their_own_answers() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    let relay = fleet.relay(over(&brokers)).await;
    let (a, _b) = (service(&brokers[1], "svc-a").await, service(&brokers[1], "svc-b").await);
    a.echo(Echo::default().prefix("svc-a:").delay(Duration::from_millis(30))).await;
    let sender = asking(&brokers[0]).await;
    let requests = (0..300).map(|number: usize| {
        request(&number.to_string()).correlation_data(number.to_string()).qos((number % 3).try_into().unwrap())
    });
    publish_all(&sender, requests).await;
    for _ in 0..300 {
        let answer = sender.next_message(SOON).await;
        assert_eq!(answer.text().as_bytes()[6..], answer.correlation_data.as_ref().unwrap()[..]);
    }
    assert_eq!(figures(&relay).await.responses, 300);
    relay.close().await;
}

#[tokio::test]
async fn without_an_instance_the_sender_is_told_at_once() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &[])]);
    let mut settings = over(&brokers);
    settings.filters = vec!["/#".to_owned()];
    let relay = fleet.relay(settings).await;
    let (sender, dead) = (asking(&brokers[0]).await, dead_letters(&brokers[0]).await);
    let start = Instant::now();
    for qos in 0..3 {
        sender.publish(request("q").qos(qos)).await;
        let told = sender.next_message(SOON).await;
        assert_eq!(error(&told), ("no-instance", "pick an instance of cfgs: none is registered"));
        assert_eq!(told.qos, qos);
        let letter = dead.next_message(SOON).await;
        assert_eq!(letter.topic, format!("pointsman/dead-letter//login/user/{RELAY}"));
        assert_eq!((letter.text(), letter.response_topic.as_deref()), ("q", None));
        assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"));
        sender.publish(PahoMessage { topic: "/x".to_owned(), ..request("q").qos(qos) }).await;
        assert_eq!(error(&sender.next_message(SOON).await).0, "no-route");
        assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("no-route"));
    }
    assert!(start.elapsed() < Duration::from_secs(25), "told after the time for answers");
    assert_eq!(figures(&relay).await.errors_told, 6);
    relay.close().await;
}

#[tokio::test]
async fn without_an_answer_in_time_the_sender_is_told_and_what_comes_later_is_counted() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = over(&brokers);
    settings.routes[0].response_timeout = Some(Duration::from_millis(300));
    let relay = fleet.relay(settings).await;
    let (service, sender) = (everyone(&brokers[1], &["svc-a"]).await, asking(&brokers[0]).await);
    let start = Instant::now();
    sender.publish(request("q")).await;
    let question = service.next_message(SOON).await;
    assert_eq!(error(&sender.next_message(SOON).await), ("no-answer", "no answer in time"));
    assert!(start.elapsed() >= Duration::from_millis(300));
    service.publish(PahoMessage::new(&question.response_topic.unwrap(), "late")).await;
    let late = until(&relay, "late", |figures| figures.dropped == 1).await;
    assert_eq!((late.responses, late.errors_told, late.requests), (0, 1, 0));
    assert_eq!(rest(&sender, &sender, "inbox").await, 0);
    relay.close().await;
}

#[tokio::test]
async fn a_request_is_answered_once_and_by_nobody_who_guesses() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(over(&brokers)).await;
    let (service, sender) = (everyone(&brokers[1], &["svc-a"]).await, asking(&brokers[0]).await);
    sender.publish(request("q")).await;
    let at = service.next_message(SOON).await.response_topic.unwrap();
    let (number, _) = at.rsplit_once('-').unwrap();
    for bad in [format!("{number}-0"), format!("{at}/x"), format!("pointsman/reply/{RELAY}/"), format!("{at}0")] {
        service.publish(PahoMessage::new(&bad, "bad")).await;
    }
    service.publish(PahoMessage::new(&at, "first").correlation_data([9]).user_property("a", "b").retain()).await;
    service.publish(PahoMessage::new(&at, "second")).await;
    let answer = sender.next_message(SOON).await;
    // What the service says itself goes before what the sender has said.
    assert_eq!((answer.text(), answer.correlation_data.as_deref()), ("first", Some(&[9][..])));
    assert_eq!((answer.retain, property(&answer, "a")), (false, Some("b")));
    let figures = until(&relay, "all judged", |figures| figures.dropped == 5).await;
    assert_eq!((figures.responses, figures.requests), (1, 0));
    relay.close().await;
}

/// A relay over svc-a, which does not answer, and svc-b, which does; a request is with svc-a.
async fn with_one_that_is_silent(
    redispatch: bool,
) -> (Fleet, pointsman_mqtt::relay::Relay, Paho, [Paho; 2], [Mosquitto; 2]) {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = over(&brokers);
    settings.routes[0].redispatch = redispatch;
    let relay = fleet.relay(settings).await;
    let services = [everyone(&brokers[1], &["svc-a"]).await, service(&brokers[1], "svc-b").await];
    let sender = asking(&brokers[0]).await;
    sender.publish(request("q").qos(2).user_property("a", "b")).await;
    assert_eq!(services[0].next_message(SOON).await.text(), "q");
    until(&relay, "delivered", |figures| figures.delivered == 1).await;
    (fleet, relay, sender, services, brokers)
}

#[tokio::test]
async fn who_dies_with_a_request_takes_it_along_unless_it_may_be_sent_again() {
    let (fleet, relay, sender, _services, _brokers) = with_one_that_is_silent(false).await;
    fleet.join("cfgs", support::normal("cfgs", "svc-b"));
    fleet.leave("cfgs", "svc-a");
    let told = sender.next_message(SOON).await;
    let detail = "instance svc-a is gone; the route does not send requests again";
    assert_eq!(error(&told), ("instance-gone", detail));
    assert_eq!((told.qos, figures(&relay).await.redispatched), (2, 0));
    relay.close().await;
}

#[tokio::test]
async fn who_dies_with_a_request_is_replaced_if_it_may_be_sent_again() {
    let (fleet, relay, sender, services, _brokers) = with_one_that_is_silent(true).await;
    fleet.join("cfgs", support::normal("cfgs", "svc-b"));
    fleet.leave("cfgs", "svc-a");
    let answer = sender.next_message(SOON).await;
    assert_eq!((answer.text(), answer.correlation_data.as_deref()), ("svc-b:q", Some(&[0, 255][..])));
    let again = services[1].next_message(SOON).await;
    assert_eq!((again.topic.as_str(), again.qos, property(&again, "a")), ("svc-b/login/user", 2, Some("b")));
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.redispatched, figures.responses, figures.requests, figures.delivered), (1, 1, 0, 2));
    relay.close().await;
}

fn guarded(code: &str) -> ObservedInstance {
    let mut instance = support::normal("cfgs", code);
    instance.guarded_since = Some(SystemTime::UNIX_EPOCH);
    instance
}

/// An instance that the registry has lost together with most others is guarded for 30 s. Its requests do not wait for that long.
#[tokio::test]
async fn a_request_at_a_guarded_instance_goes_to_one_that_is_registered_if_it_may_be_sent_again() {
    let (fleet, relay, sender, _services, _brokers) = with_one_that_is_silent(true).await;
    // Where all are guarded, none is better than the one that has the request.
    fleet.join("cfgs", guarded("svc-b"));
    fleet.join("cfgs", guarded("svc-a"));
    assert_eq!(sender.try_next_message(Duration::from_millis(300)).await, None);
    assert_eq!(figures(&relay).await.redispatched, 0);
    fleet.join("cfgs", support::normal("cfgs", "svc-b"));
    assert_eq!(sender.next_message(SOON).await.text(), "svc-b:q");
    let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
    assert_eq!((figures.redispatched, figures.responses, figures.requests), (1, 1, 0));
    relay.close().await;
}

#[tokio::test]
async fn a_request_at_a_guarded_instance_stays_there_if_it_may_not_be_sent_again() {
    let (fleet, relay, sender, services, _brokers) = with_one_that_is_silent(false).await;
    fleet.join("cfgs", support::normal("cfgs", "svc-b"));
    fleet.join("cfgs", guarded("svc-a"));
    assert_eq!(sender.try_next_message(Duration::from_millis(300)).await, None);
    assert_eq!(services[1].try_next_message(Duration::ZERO).await, None);
    assert_eq!((figures(&relay).await.redispatched, figures(&relay).await.requests), (0, 1));
    relay.close().await;
}

#[tokio::test]
async fn who_dies_last_leaves_nobody_to_send_to() {
    let (fleet, relay, sender, _services, _brokers) = with_one_that_is_silent(true).await;
    fleet.leave("cfgs", "svc-a");
    assert_eq!(error(&sender.next_message(SOON).await).0, "instance-gone");
    relay.close().await;
}

#[tokio::test]
async fn where_nobody_listens_a_request_goes_to_another_or_the_sender_is_told() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    let relay = fleet.relay(over(&brokers)).await;
    let (service, sender, dead) =
        (service(&brokers[1], "svc-b").await, asking(&brokers[0]).await, dead_letters(&brokers[0]).await);
    for _ in 0..6 {
        sender.publish(request("q")).await;
        assert_eq!(sender.next_message(SOON).await.text(), "svc-b:q");
    }
    assert!(figures(&relay).await.redispatched > 0);
    service.unsubscribe("svc-b/#").await;
    sender.publish(request("q")).await;
    assert_eq!(error(&sender.next_message(SOON).await).0, "no-subscriber");
    let letter = dead.next_message(SOON).await;
    assert_eq!(letter.topic, format!("pointsman/dead-letter//login/user/{RELAY}"));
    relay.close().await;
}

#[tokio::test]
async fn a_service_behind_version_3_gets_messages_and_no_requests() {
    let brokers = brokers().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = over(&brokers);
    settings.egress = vec![format!("{}?version=3.1.1", brokers[1].url()).parse().unwrap()];
    let relay = fleet.relay(settings).await;
    let service = Paho::start().await;
    service.connect(PahoOptions::new(&brokers[1].address()).v3()).await;
    service.subscribe("svc-a/#", 2).await;
    let (sender, dead) = (asking(&brokers[0]).await, dead_letters(&brokers[0]).await);
    for qos in 0..3 {
        sender.publish(PahoMessage::new("/login/x", "m").qos(qos).content_type("c").message_expiry(9)).await;
        let message = service.next_message(SOON).await;
        assert_eq!((message.topic.as_str(), message.text(), message.qos), ("svc-a/login/x", "m", qos));
        sender.publish(request("q").qos(qos)).await;
        let told = sender.next_message(SOON).await;
        assert_eq!(error(&told), ("refused", "the service's broker speaks MQTT 3.1.1, which has no requests"));
        assert_eq!(property(&dead.next_message(SOON).await, "pointsman-reason"), Some("refused"));
    }
    relay.close().await;
}

#[tokio::test]
async fn senders_of_version_3_are_served_too() {
    for (version, max_in_flight) in [("3.1.1", 3), ("3.1.1", 10_000), ("5", 10_000)] {
        senders_of(version, max_in_flight).await;
    }
}

async fn senders_of(version: &str, max_in_flight: usize) {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"]), ("none", &[])]);
    let mut settings = settings(&broker);
    settings.ingress = Some(format!("{}?version={version}", broker.url()).parse().unwrap());
    settings.max_in_flight = max_in_flight;
    settings.routes.push(Route::new("^/none(/|$)", "none"));
    let relay = fleet.relay(settings).await;
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).v3()).await;
    let (service, dead) = (everyone(&broker, &["svc-a"]).await, dead_letters(&broker).await);
    for qos in 0..3 {
        publish_all(&sender, support::numbered("/login/x", 0..100, qos)).await;
        assert_eq!(support::collect(&service, 100).await, ((0..100).collect(), 0));
        publish_all(&sender, support::numbered("/none/x", 0..100, qos)).await;
        assert_eq!(support::collect(&dead, 100).await, ((0..100).collect(), 0), "QoS {qos}, {version}");
    }
    relay.close().await;
}
