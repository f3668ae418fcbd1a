//! Where a relay answers: a sender names the topic, and has fewer rights than the relay.

#![allow(clippy::unwrap_used)]

mod support;

use pointsman_mqtt::relay::{Route, Settings, Topics};
use pointsman_testkit::{Echo, Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{Fleet, RELAY, SOON, between, figures, property, settings};

/// Senders may write requests and read answers, nothing else.
const ACL: &str = "user anna\ntopic write /login/#\ntopic write /1.0/#\ntopic read reply/#\ntopic read /1.0/#\n\
                   user pointsman\ntopic readwrite #\ntopic readwrite $share/#\n";
const UUID: &str = "0b5c1f0e-6d0f-4b6e-9d2e-3a3c5a1d7a11";

async fn broker() -> Mosquitto {
    Mosquitto::options().nodelay().password("anna", "a").password("pointsman", "p").acl(ACL).start().await
}

async fn client(broker: &Mosquitto, user: &str, password: &str) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(&broker.address()).password(user, password)).await;
    paho
}

/// A relay with rights of its own.
fn trusted(broker: &Mosquitto) -> Settings {
    let mut settings = settings(broker);
    settings.ingress = Some(format!("mqtt://pointsman:p@{}", broker.address()).parse().unwrap());
    settings.egress = Vec::new();
    settings
}

async fn instance(broker: &Mosquitto, code: &str) -> Paho {
    let paho = client(broker, "pointsman", "p").await;
    paho.subscribe(&format!("{code}/#"), 2).await;
    paho.echo(Echo::default().prefix(&format!("{code}:"))).await;
    paho
}

fn request(text: &str, response_topic: &str) -> PahoMessage {
    PahoMessage::new("/login/user", text).qos(1).response_topic(response_topic)
}

#[tokio::test]
async fn a_response_topic_is_no_way_around_the_brokers_rules() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"]), ("other", &["victim"])]);
    let mut settings = trusted(&broker);
    settings.routes.push(Route::new("^/other/", "other"));
    let relay = fleet.relay(settings).await;
    let service = instance(&broker, "svc-a").await;
    let (sender, watcher) = (client(&broker, "anna", "a").await, client(&broker, "pointsman", "p").await);
    sender.subscribe("reply/#", 1).await;
    let uuid = format!("{UUID}/cmd/off");
    let relays = format!("{RELAY}/cmd");
    let reply = format!("pointsman/reply/{RELAY}/1-1");
    let topics = [
        "victim/cmd/off",
        "svc-a/again",
        &relays,
        &uuid,
        &reply,
        "pointsman/dead-letter/x",
        "pointsman/anything",
        "$SYS/x",
        "/other/x",
        "/login/again",
    ];
    for filter in ["#", "$SYS/x"] {
        watcher.subscribe(filter, 2).await;
    }
    for (index, topic) in topics.iter().enumerate() {
        sender.publish(request(&index.to_string(), topic)).await;
        let is_letter = |message: &PahoMessage| message.topic == "pointsman/dead-letter//login/user";
        let seen = watcher.messages_until(is_letter, SOON).await;
        let letter = seen.last().unwrap();
        assert_eq!(
            (letter.text(), property(letter, "pointsman-reason")),
            (&*index.to_string(), Some("response-topic"))
        );
        assert!(property(letter, "pointsman-detail").unwrap().contains(*topic), "{letter:?}");
        // The request itself is all that there is besides.
        let others: Vec<_> = seen.iter().map(|message| message.topic.as_str()).collect();
        assert_eq!(others, ["/login/user", "pointsman/dead-letter//login/user"], "{topic}");
    }
    sender.publish(request("last", "reply/1")).await;
    assert_eq!(sender.next_message(SOON).await.text(), "svc-a:last");
    assert_eq!(service.next_message(SOON).await.text(), "last", "no other request has come to an instance");
    assert_eq!(figures(&relay).await.dead_letters, topics.len() as u64);
    relay.close().await;
}

#[tokio::test]
async fn only_listed_response_topics_are_answered_where_there_is_a_list() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let mut settings = trusted(&broker);
    settings.response_topics = vec!["reply/#".to_owned()];
    let relay = fleet.relay(settings.clone()).await;
    let _service = instance(&broker, "svc-a").await;
    let asker = client(&broker, "pointsman", "p").await;
    for filter in ["reply/#", "elsewhere/#", "pointsman/inbox/#", "pointsman/reply/+/+", "pointsman/dead-letter/#"] {
        asker.subscribe(filter, 1).await;
    }
    let answered = async |topic: &str| {
        asker.publish(request(topic, topic)).await;
        let is_end = |message: &PahoMessage| message.topic == topic || message.topic.starts_with("pointsman/dead");
        asker.messages_until(is_end, SOON).await.last().unwrap().topic == topic
    };
    assert!(answered("reply/1").await);
    assert!(!answered("elsewhere/1").await);
    assert!(!answered("pointsman/inbox/x").await);
    // A relay behind another one is opened to its answers by name, not by a wildcard.
    settings.response_topics = vec!["#".to_owned()];
    relay.reload(settings.clone(), fleet.views()).await.unwrap();
    assert!(answered("elsewhere/1").await && answered("pointsman/inbox/x").await);
    assert!(!answered("pointsman/reply/other/1-1").await);
    settings.response_topics = vec!["pointsman/reply/#".to_owned()];
    relay.reload(settings.clone(), fleet.views()).await.unwrap();
    assert!(answered("pointsman/reply/other/1-1").await && !answered("elsewhere/1").await);
    settings.response_topics = Vec::new();
    relay.reload(settings, fleet.views()).await.unwrap();
    assert!(answered("elsewhere/1").await && answered("pointsman/inbox/x").await);
    relay.close().await;
}

#[tokio::test]
async fn an_instance_that_comes_later_gets_no_answers_of_others() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
    let relay = fleet.relay(trusted(&broker)).await;
    let (service, late) = (client(&broker, "pointsman", "p").await, client(&broker, "pointsman", "p").await);
    service.subscribe("svc-a/#", 1).await;
    late.subscribe("svc-late/#", 1).await;
    let sender = client(&broker, "anna", "a").await;
    sender.publish(request("q", "svc-late/cmd")).await;
    let question = service.next_message(SOON).await;
    fleet.join("cfgs", support::normal("cfgs", "svc-late"));
    // What is published after the change is seen by a relay that knows of it.
    sender.publish(request("probe", "svc-late/cmd")).await;
    support::until(&relay, "refused", |figures| figures.dead_letters == 1).await;
    service.publish(PahoMessage::new(&question.response_topic.unwrap(), "a").qos(1)).await;
    support::until(&relay, "dropped", |figures| figures.dropped == 1).await;
    assert_eq!(support::rest(&late, &service, "svc-late").await, 0);
    relay.close().await;
}

#[tokio::test]
async fn envelopes_are_no_way_around_them_either() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("configs", &["svc-c"])]);
    let mut settings = between(&broker.url(), &broker.url(), vec![Route::new("^configs/serverinfo/$", "configs")]);
    settings.ingress = trusted(&broker).ingress;
    settings.egress = Vec::new();
    settings.topics = Topics::GoEnvelope;
    let relay = fleet.relay(settings.clone()).await;
    let service = client(&broker, "pointsman", "p").await;
    service.envelope_echo("svc-c", 1).await;
    let (sender, letters) = (client(&broker, "anna", "a").await, client(&broker, "pointsman", "p").await);
    sender.subscribe("/1.0/cgws/+/+", 1).await;
    letters.subscribe("pointsman/dead-letter/#", 1).await;
    let ask = async |name: &str| {
        let topic = format!("/1.0/{name}/POST/1_2_3/{RELAY}/configs/serverinfo/");
        sender.publish(PahoMessage::new(&topic, "q").qos(1)).await;
    };
    // Where relays await the answers of instances.
    ask("zk-mqtt-loadblance").await;
    let letter = letters.next_message(SOON).await;
    assert_eq!(property(&letter, "pointsman-reason"), Some("response-topic"));
    ask("cgws").await;
    assert_eq!(sender.next_message(SOON).await.topic, "/1.0/cgws/POST/1_2_3");
    settings.response_topics = vec!["/1.0/other/#".to_owned()];
    relay.reload(settings, fleet.views()).await.unwrap();
    ask("cgws").await;
    let letter = letters.next_message(SOON).await;
    assert_eq!(property(&letter, "pointsman-reason"), Some("response-topic"));
    relay.close().await;
}

#[tokio::test]
async fn dead_letters_stay_under_their_prefix_and_say_only_what_the_relay_has_found() {
    let broker = broker().await;
    let fleet = Fleet::new(&[("cfgs", &[])]);
    let relay = fleet.relay(trusted(&broker)).await;
    let (sender, watcher) = (client(&broker, "anna", "a").await, client(&broker, "pointsman", "p").await);
    watcher.subscribe("pointsman/#", 1).await;
    let forged = PahoMessage::new("/login/../victim/cmd", "x")
        .qos(1)
        .user_property("pointsman-reason", "forged")
        .user_property("pointsman-topic", "victim/cmd");
    sender.publish(forged).await;
    let letter = watcher.next_message(SOON).await;
    assert_eq!(letter.topic, "pointsman/dead-letter//login/../victim/cmd");
    let names: Vec<_> = letter.user_properties.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pointsman-reason", "pointsman-detail"]);
    assert_eq!(property(&letter, "pointsman-reason"), Some("no-instance"));
    relay.close().await;
}
