//! Beside the processes of go-micro-service: their wire format, to the letter.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use pointsman_mqtt::relay::{Route, Settings, Topics};
use pointsman_testkit::{Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{Fleet, SOON, between, client, dead_letters, figures, property, publish_all, rest, until};

/// The example of COMPATIBILITY.md.
const CODE: &str = "fcae5124-f37e-4987-a6d7-3782f90c6288";
const ID: &str = "1795418027019215241_26upaoh6tgcinx3o8gjrkz2x4xtmpjin_sessionid";

fn request_topic(action: &str) -> String {
    format!("/1.0/cgws/{action}/{ID}/{CODE}/configs/serverinfo/")
}

fn response_topic(action: &str) -> String {
    format!("/1.0/cgws/{action}/{ID}")
}

fn over(ingress: &Mosquitto, egress: &Mosquitto) -> Settings {
    let routes = vec![Route::new("^configs/serverinfo/$", "configs"), Route::new("^none/", "none")];
    let mut settings = between(&ingress.url(), &egress.url(), routes);
    (settings.topics, settings.code) = (Topics::GoEnvelope, Some(CODE.into()));
    settings
}

fn fleet() -> Fleet {
    Fleet::new(&[("configs", &["svc-c"]), ("none", &[])])
}

/// A sender as go-micro-service has it: version 3.1.1, subscribed to its answers.
async fn cgws(broker: &Mosquitto) -> Paho {
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).v3()).await;
    sender.subscribe("/1.0/cgws/+/+", 1).await;
    sender
}

/// A service as go-micro-service has it: version 3.1.1, subscribed to one action under its code.
async fn configs(broker: &Mosquitto, code: &str) -> Paho {
    let service = Paho::start().await;
    service.connect(PahoOptions::new(&broker.address()).v3()).await;
    service.envelope_echo(code, 1).await;
    service
}

/// Checks an identifier of go-micro-service: `<unix ns>_<32 characters 0-9a-z>_sessionid`.
fn check_id(id: &str) {
    let parts: Vec<&str> = id.split('_').collect();
    assert_eq!((parts.len(), parts[1].len(), parts[2]), (3, 32, "sessionid"), "{id}");
    assert!(parts[0].len() == 19 && parts[0].bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    assert!(parts[1].bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()), "{id}");
}

#[tokio::test]
async fn a_request_and_its_answer_to_the_letter() {
    let (ingress, egress) =
        (Mosquitto::options().verbose().start().await, Mosquitto::options().verbose().start().await);
    let (one, other) = (over(&ingress, &egress), over(&egress, &egress));
    for (settings, senders) in [(one, &ingress), (other, &egress)] {
        for version in ["", "?version=3.1.1"] {
            let mut settings = settings.clone();
            let with = |url: &pointsman_mqtt::BrokerUrl| format!("{url}{version}").parse().unwrap();
            settings.ingress = settings.ingress.as_ref().map(with);
            settings.egress = settings.egress.iter().map(with).collect();
            let fleet = fleet();
            let relay = fleet.relay(settings).await;
            let (_service, sender, watcher) =
                (configs(&egress, "svc-c").await, cgws(senders).await, client(&egress).await);
            watcher.subscribe("/1.0/zk-mqtt-loadblance/#", 2).await;
            sender.publish(PahoMessage::new(&request_topic("POST"), "hello0")).await;
            let out = watcher.next_message(SOON).await;
            let levels: Vec<&str> = out.topic.split('/').collect();
            check_id(levels[4]);
            assert_ne!(levels[4], ID);
            let id = levels[4].to_owned();
            assert_eq!(out.topic, format!("/1.0/zk-mqtt-loadblance/POST/{id}/configs/serverinfo/svc-c/"));
            assert_eq!((out.text(), out.response_topic.as_deref()), ("hello0", None));
            let back = watcher.next_message(SOON).await;
            assert_eq!(
                (back.topic, back.payload),
                (format!("/1.0/zk-mqtt-loadblance/POST/{id}"), b"echo[svc-c]:hello0".to_vec())
            );
            let answer = sender.next_message(SOON).await;
            assert_eq!((answer.topic.as_str(), answer.text()), (response_topic("POST").as_str(), "echo[svc-c]:hello0"));
            let figures = until(&relay, "idle", |figures| figures.in_flight == 0).await;
            assert_eq!((figures.responses, figures.requests, figures.dead_letters), (1, 0, 0));
            relay.close().await;
        }
    }
    // As the Go relay subscribes.
    assert!(ingress.log().contains(&format!("\t/+/+/+/+/{CODE}/# (QoS ")));
    assert!(egress.log().contains("\t/1.0/zk-mqtt-loadblance/+/+ (QoS "));
}

#[tokio::test]
async fn quality_is_kept_and_answers_find_their_requests() {
    let (ingress, egress) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let fleet = Fleet::new(&[("configs", &["svc-a", "svc-b"])]);
    let mut settings = over(&ingress, &egress);
    settings.routes.truncate(1);
    let relay = fleet.relay(settings).await;
    let services = [client(&egress).await, client(&egress).await];
    for (service, code) in services.iter().zip(["svc-a", "svc-b"]) {
        service.envelope_echo(code, 2).await;
    }
    let sender = client(&ingress).await;
    sender.subscribe("/1.0/cgws/+/+", 2).await;
    let topic = |number: usize| format!("/1.0/cgws/POST/{number}_x_sessionid/{CODE}/configs/serverinfo/");
    for qos in 0..3 {
        publish_all(&sender, (0..60).map(|number| PahoMessage::new(&topic(number), number.to_string()).qos(qos))).await;
        for _ in 0..60 {
            let answer = sender.next_message(SOON).await;
            let number = answer.text().split_once(':').unwrap().1.to_owned();
            assert_eq!((answer.topic, answer.qos), (format!("/1.0/cgws/POST/{number}_x_sessionid"), 2));
        }
        // Defect 21.
        for service in &services {
            for _ in 0..30 {
                assert_eq!(service.next_message(SOON).await.qos, qos);
            }
        }
    }
    relay.close().await;
}

#[tokio::test]
async fn every_action_passes_and_some_wait_for_an_answer() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = fleet();
    let relay = fleet.relay(over(&broker, &broker)).await;
    let (service, sender) = (client(&broker).await, cgws(&broker).await);
    service.subscribe("/+/+/+/+/configs/serverinfo/svc-c/", 2).await;
    for action in ["POST", "PUT", "GET", "DELETE", "UPDATED", "DELETED", "OTHER"] {
        let before = figures(&relay).await;
        sender.publish(PahoMessage::new(&request_topic(action), action)).await;
        let message = service.next_message(SOON).await;
        let levels: Vec<&str> = message.topic.split('/').collect();
        assert_eq!((levels[3], levels.len(), message.text()), (action, 9, action));
        let waits = matches!(action, "POST" | "PUT" | "GET" | "DELETE");
        until(&relay, "waiting", |figures| figures.requests == before.requests + u64::from(waits)).await;
        service.publish(PahoMessage::new(&levels[..5].join("/"), action)).await;
        if waits {
            let answer = sender.next_message(SOON).await;
            assert_eq!((answer.topic.as_str(), answer.text()), (response_topic(action).as_str(), action));
        }
    }
    assert_eq!(figures(&relay).await.requests, 0);
    relay.close().await;
}

#[tokio::test]
async fn who_cannot_be_served_is_told() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = fleet();
    let mut settings = over(&broker, &broker);
    settings.response_timeout = Duration::from_millis(300);
    let relay = fleet.relay(settings).await;
    let (sender, dead) = (cgws(&broker).await, dead_letters(&broker).await);
    let told = async |topic: &str, reason: &str| {
        sender.publish(PahoMessage::new(topic, "q")).await;
        let error = sender.next_message(SOON).await;
        assert_eq!(error.topic, response_topic("POST"));
        assert!(
            error.text().starts_with(&format!(r#"{{"type":"about:blank","title":"{reason}","detail":""#)),
            "{error:?}"
        );
    };
    let buried = async |topic: &str, reason: &str| {
        let letter = dead.next_message(SOON).await;
        assert_eq!((letter.topic.as_str(), letter.text()), (format!("pointsman/dead-letter/{topic}").as_str(), "q"));
        assert_eq!(property(&letter, "pointsman-reason"), Some(reason));
    };
    let to = |topic: &str| format!("/1.0/cgws/POST/{ID}/{CODE}/{topic}");
    for (topic, reason) in [
        ("none/x/", "no-instance"),
        ("configs/x/", "no-route"),
        ("configs/serverinfo/", "no-subscriber"),
        // Without the last slash it is understood too.
        ("configs/serverinfo", "no-subscriber"),
    ] {
        told(&to(topic), reason).await;
        buried(&to(topic), reason).await;
    }
    // Nobody is told where nobody waits.
    let updated = format!("/1.0/cgws/UPDATED/{ID}/{CODE}/none/x/");
    sender.publish(PahoMessage::new(&updated, "q")).await;
    buried(&updated, "no-instance").await;
    // What is no envelope.
    for topic in [to(""), format!("/1.0//POST/{ID}/{CODE}/x/"), format!("/1.0/cgws/POST/{ID}/{CODE}")] {
        sender.publish(PahoMessage::new(&topic, "q")).await;
        buried(&topic, "topic").await;
    }
    // What would come back for ever.
    sender.publish(PahoMessage::new(&to(&format!("{CODE}/configs/serverinfo/")), "q")).await;
    buried(&to(&format!("{CODE}/configs/serverinfo/")), "loop").await;
    // A service that does not answer.
    let service = client(&broker).await;
    service.subscribe("/+/+/POST/+/configs/serverinfo/svc-c/", 1).await;
    told(&to("configs/serverinfo/"), "no-answer").await;
    relay.close().await;
}

#[tokio::test]
async fn a_relay_of_go_and_others_answers_on_the_same_broker_are_let_be() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = fleet();
    let relay = fleet.relay(over(&broker, &broker)).await;
    let mut second = over(&broker, &broker);
    second.code = Some("00000000-f37e-4987-a6d7-3782f90c6288".into());
    let second = fleet.relay(second).await;
    // Go's relay, which listens to the same answers.
    let (go, sender, service) = (client(&broker).await, cgws(&broker).await, configs(&broker, "svc-c").await);
    go.subscribe("/1.0/zk-mqtt-loadblance/+/+", 1).await;
    for id in [
        ID,
        "x",
        "1_z_sessionid",
        &format!("1_{}_sessionid", "z".repeat(32)),
        &format!("1_{}_sessionid", "0".repeat(32)),
    ] {
        go.publish(PahoMessage::new(&format!("/1.0/zk-mqtt-loadblance/POST/{id}"), "not ours")).await;
        go.next_message(SOON).await;
    }
    for number in 0..20 {
        sender.publish(PahoMessage::new(&request_topic("POST"), number.to_string())).await;
        assert_eq!(sender.next_message(SOON).await.text(), format!("echo[svc-c]:{number}"));
        assert_eq!(service.next_message(SOON).await.text(), number.to_string());
    }
    sender.subscribe("end/#", 1).await;
    assert_eq!(rest(&sender, &sender, "end").await, 0);
    let idle = figures(&second).await;
    assert_eq!((idle.received, idle.responses), (0, 0));
    assert_eq!(figures(&relay).await.responses, 20);
    relay.close().await;
    second.close().await;
}

#[tokio::test]
async fn who_dies_with_a_request_is_replaced() {
    let broker = Mosquitto::options().nodelay().start().await;
    let fleet = fleet();
    let mut settings = over(&broker, &broker);
    settings.routes[0].redispatch = true;
    let relay = fleet.relay(settings).await;
    let (silent, sender, _service) = (client(&broker).await, cgws(&broker).await, configs(&broker, "svc-d").await);
    silent.subscribe("/+/+/POST/+/configs/serverinfo/svc-c/", 1).await;
    sender.publish(PahoMessage::new(&request_topic("POST"), "q")).await;
    silent.next_message(SOON).await;
    fleet.join("configs", support::normal("configs", "svc-d"));
    fleet.leave("configs", "svc-c");
    assert_eq!(sender.next_message(SOON).await.text(), "echo[svc-d]:q");
    relay.close().await;
}

#[tokio::test]
async fn ten_thousand_retained_messages_at_subscription_are_no_news() {
    let broker = Mosquitto::options().nodelay().start().await;
    let sender = Paho::start().await;
    sender.connect(PahoOptions::new(&broker.address()).max_inflight(0)).await;
    let retained = (0..10_000).map(|number| {
        PahoMessage::new(&format!("/1.0/cgws/POST/{number}/{CODE}/configs/serverinfo/"), "old").qos(1).retain()
    });
    publish_all(&sender, retained).await;
    let service = client(&broker).await;
    service.subscribe("/+/+/+/+/configs/serverinfo/svc-c/", 2).await;
    for version in ["5", "3.1.1"] {
        let fleet = fleet();
        let mut settings = over(&broker, &broker);
        settings.ingress = Some(format!("{}?version={version}", broker.url()).parse().unwrap());
        let relay = fleet.relay(settings).await;
        sender.publish(PahoMessage::new(&request_topic("UPDATED"), "new")).await;
        assert_eq!(service.next_message(SOON).await.text(), "new");
        // Version 3.1.1 cannot ask for none.
        let dropped = if version == "5" { 0 } else { 10_000 };
        until(&relay, "through", |figures| figures.dropped == dropped).await;
        assert_eq!(figures(&relay).await.received, 1);
        relay.close().await;
    }
}
