//! A relay that is killed, and started again with its journal.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use pointsman_mqtt::relay::{Route, Settings};
use pointsman_testkit::{CuttingProxy, Direction, Mosquitto, Paho, PahoMessage, PahoOptions};
use support::{Fleet, RELAY, SOON, between, client, collect, everyone, numbered, publish_all, service, until};

/// A relay on a thread of its own, which can be killed: everything of it stops at once, wherever it is.
struct Killable {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Killable {
    fn start(fleet: &Fleet, settings: Settings) -> Self {
        let (views, changed) = (fleet.views(), fleet.changed());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let relay = pointsman_mqtt::relay::Relay::start(settings, views, changed, None).unwrap();
                ready.send(()).unwrap();
                let _ = stopped.await;
                // Never polled again: the runtime is dropped with its task in it.
                std::mem::forget(relay);
            });
        });
        is_ready.recv().unwrap();
        Self { stop, thread }
    }

    fn kill(self) {
        let _ = self.stop.send(());
        self.thread.join().unwrap();
    }
}

fn settings(ingress: &str, egress: &str, state: Option<&Path>) -> Settings {
    let mut settings = between(ingress, egress, vec![Route::new("^/login(/|$)", "cfgs")]);
    settings.state = state.map(Path::to_owned);
    settings
}

/// Sends so many numbered messages of QoS 2, cuts one of them at a stage, and kills the relay there. How often each arrives.
async fn killed_at(side: &str, direction: Direction, packet: u8, state: Option<&Path>) -> BTreeMap<String, usize> {
    const MESSAGES: usize = 20;
    let (senders, services) =
        (Mosquitto::options().nodelay().start().await, Mosquitto::options().nodelay().start().await);
    let proxies = [CuttingProxy::start(senders.socket_address()), CuttingProxy::start(services.socket_address())];
    let urls = proxies.each_ref().map(|proxy| format!("mqtt://{}", proxy.address()));
    let fleet = Fleet::new(&[("cfgs", &["svc-a", "svc-b"])]);
    let relay = Killable::start(&fleet, settings(&urls[0], &urls[1], state));
    let (service, sender) = (client(&services).await, client(&senders).await);
    service.subscribe("svc-a/#", 2).await;
    service.subscribe("svc-b/#", 2).await;
    wait_for_relay(&sender).await;
    service.next_message(SOON).await;

    let cut = proxies[usize::from(side == "egress")].cut_at_mqtt(direction, packet);
    for number in 0..MESSAGES {
        sender.publish(PahoMessage::new(&format!("/login/{RELAY}"), number.to_string()).qos(2)).await;
    }
    cut.happened().await;
    relay.kill();
    proxies.iter().for_each(CuttingProxy::mend);
    let relay = Killable::start(&fleet, settings(&urls[0], &urls[1], state));
    let mut counts = BTreeMap::new();
    let last = PahoMessage::new(&format!("/login/{RELAY}"), "last").qos(2);
    sender.publish(last).await;
    // The two codes are two orders; "last" may overtake what went to the other.
    while counts.len() < MESSAGES + 1 {
        let message = next_question(&service).await;
        *counts.entry(message.text().to_owned()).or_insert(0) += 1;
    }
    while let Some(message) = service.try_next_message(Duration::from_millis(200)).await {
        if message.text() == "hello" {
            continue;
        }
        *counts.entry(message.text().to_owned()).or_insert(0) += 1;
    }
    relay.kill();
    counts
}

/// Shared subscriptions have no sign of their own: a message that comes through says that the relay is there.
async fn wait_for_relay(sender: &Paho) {
    let deadline = tokio::time::Instant::now() + SOON;
    // 0x10: nobody has subscribed yet.
    while sender.publish(PahoMessage::new(&format!("/login/{RELAY}"), "hello").qos(1)).await == 0x10 {
        assert!(tokio::time::Instant::now() < deadline, "no relay");
    }
}

/// The next message but for what said that the relay is there: killed before the relay knew of its acknowledgement, that comes
/// again, as QoS 1 may.
async fn next_question(service: &Paho) -> PahoMessage {
    loop {
        let message = service.next_message(SOON).await;
        if message.text() != "hello" {
            return message;
        }
    }
}

const PUBLISH: u8 = 3;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;

#[tokio::test]
async fn qos_2_is_exactly_once_wherever_the_relay_is_killed() {
    for (side, direction, packet) in [
        ("egress", Direction::ToServer, PUBLISH),
        ("egress", Direction::ToClient, PUBREC),
        ("egress", Direction::ToServer, PUBREL),
        ("egress", Direction::ToClient, PUBCOMP),
        ("ingress", Direction::ToClient, PUBLISH),
        ("ingress", Direction::ToServer, PUBREC),
        ("ingress", Direction::ToClient, PUBREL),
        ("ingress", Direction::ToServer, PUBCOMP),
    ] {
        let state = tempfile::tempdir().unwrap();
        let counts = killed_at(side, direction, packet, Some(state.path())).await;
        assert!(counts.values().all(|count| *count == 1), "{side} {direction:?} {packet}: {counts:?}");
    }
}

#[tokio::test]
async fn without_a_journal_qos_2_is_at_least_once() {
    for (direction, packet) in [(Direction::ToClient, PUBREC), (Direction::ToServer, PUBREL)] {
        // That each has come is what it returns by.
        killed_at("egress", direction, packet, None).await;
    }
}

#[tokio::test]
async fn an_answer_finds_its_sender_after_the_relay_was_killed() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (fleet, state) = (Fleet::new(&[("cfgs", &["svc-a"])]), tempfile::tempdir().unwrap());
    let relay = Killable::start(&fleet, settings(&broker.url(), &broker.url(), Some(state.path())));
    let (service, sender) = (client(&broker).await, Paho::start().await);
    sender.connect(PahoOptions::new(&broker.address())).await;
    service.subscribe("svc-a/#", 1).await;
    sender.subscribe("in box/1", 1).await;
    wait_for_relay(&sender).await;
    service.next_message(SOON).await;
    let request = PahoMessage::new(&format!("/login/{RELAY}"), "q").response_topic("in box/1").correlation_data([7]);
    sender.publish(request).await;
    let request = next_question(&service).await;
    relay.kill();
    let response_topic = request.response_topic.unwrap();
    service.publish(PahoMessage::new(&response_topic, "a").qos(1)).await;
    let relay = Killable::start(&fleet, settings(&broker.url(), &broker.url(), Some(state.path())));
    let answer = sender.next_message(SOON).await;
    assert_eq!((answer.text(), answer.correlation_data.as_deref()), ("a", Some(&[7][..])));
    relay.kill();
}

#[tokio::test]
async fn a_request_of_qos_2_is_asked_and_answered_once_although_the_relay_was_killed() {
    let broker = Mosquitto::options().nodelay().start().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let (fleet, state) = (Fleet::new(&[("cfgs", &["svc-a"])]), tempfile::tempdir().unwrap());
    let mut settings = settings(&broker.url(), &format!("mqtt://{}", proxy.address()), Some(state.path()));
    settings.response_timeout = Duration::from_millis(500);
    let relay = Killable::start(&fleet, settings.clone());
    let (service, sender) = (client(&broker).await, client(&broker).await);
    service.subscribe("svc-a/#", 2).await;
    sender.subscribe("inbox", 2).await;
    wait_for_relay(&sender).await;
    service.next_message(SOON).await;
    // The services' broker has it, and the relay does not know.
    let cut = proxy.cut_at_mqtt(Direction::ToClient, PUBREC);
    let request =
        PahoMessage::new(&format!("/login/{RELAY}"), "q").qos(2).response_topic("inbox").correlation_data([7]);
    sender.publish(request).await;
    cut.happened().await;
    relay.kill();
    proxy.mend();
    let relay = Killable::start(&fleet, settings);
    let request = next_question(&service).await;
    service.publish(PahoMessage::new(&request.response_topic.unwrap(), "a").qos(2)).await;
    let answer = sender.next_message(SOON).await;
    assert_eq!((answer.text(), answer.correlation_data.as_deref()), ("a", Some(&[7][..])));
    // No second question, and nothing is told of one that nobody has answered, which would come by now.
    let second = service.try_next_message(Duration::from_millis(200)).await;
    assert!(second.is_none_or(|message| message.text() == "hello"));
    assert!(sender.try_next_message(Duration::from_millis(800)).await.is_none());
    relay.kill();
}

/// Without correlation data two requests of one sender look alike: neither is to be taken for the other.
#[tokio::test]
async fn requests_without_correlation_data_are_not_mixed_up_when_they_come_again() {
    let broker = Mosquitto::options().nodelay().start().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let (fleet, state) = (Fleet::new(&[("cfgs", &["svc-a"])]), tempfile::tempdir().unwrap());
    let settings = settings(&broker.url(), &format!("mqtt://{}", proxy.address()), Some(state.path()));
    let relay = Killable::start(&fleet, settings.clone());
    let (service, sender) = (service(&broker, "svc-a").await, client(&broker).await);
    sender.subscribe("inbox", 1).await;
    wait_for_relay(&sender).await;
    service.next_message(SOON).await;
    // The services' broker gets neither; the relay has noted both.
    let cut = proxy.cut_at_mqtt(Direction::ToServer, PUBLISH);
    for question in ["q1", "q2"] {
        sender.publish(PahoMessage::new(&format!("/login/{RELAY}"), question).qos(1).response_topic("inbox")).await;
    }
    cut.happened().await;
    proxy.cut();
    let journal = state.path().join(format!("{RELAY}.journal"));
    let noted = async {
        while std::fs::read_to_string(&journal).unwrap().matches("request ").count() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, noted).await.unwrap();
    relay.kill();
    proxy.mend();
    let relay = Killable::start(&fleet, settings);
    let mut answers = BTreeSet::new();
    while answers.len() < 2 {
        answers.insert(sender.next_message(SOON).await.text().to_owned());
    }
    assert_eq!(answers, ["svc-a:q1", "svc-a:q2"].map(str::to_owned).into());
    relay.kill();
}

/// An ordinary upgrade: what senders publish while there is no relay waits for it.
#[tokio::test]
async fn a_relay_that_is_closed_and_started_again_loses_nothing() {
    for version in ["5", "3.1.1"] {
        let broker = Mosquitto::options().nodelay().start().await;
        let fleet = Fleet::new(&[("cfgs", &["svc-a"])]);
        let service = everyone(&broker, &["svc-a"]).await;
        let sender = Paho::start().await;
        let options = PahoOptions::new(&broker.address());
        sender.connect(if version == "5" { options } else { options.v3() }).await;
        let url = format!("{}?version={version}", broker.url());
        let mut relay = Some(fleet.relay(settings(&url, &url, None)).await);
        for round in 0..3 {
            let numbers = (round * 300)..(round * 300 + 300);
            tokio::join!(publish_all(&sender, numbered("/login/x", numbers, 1)), async {
                until(relay.as_ref().unwrap(), "in the middle", |figures| figures.received >= 50).await;
                relay.take().unwrap().close().await;
                // Something is published while there is none.
                sender.publish(PahoMessage::new("/login/x", (900 + round).to_string()).qos(1)).await;
                relay = Some(fleet.relay(settings(&url, &url, None)).await);
            });
        }
        let (numbers, again) = collect(&service, 903).await;
        assert_eq!((numbers.len(), again), (903, 0), "{version}");
        relay.unwrap().close().await;
    }
}
