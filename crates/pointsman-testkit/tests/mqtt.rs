//! The broker, the client that is none of ours, and the peers that misbehave.

#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use pointsman_testkit::{
    CuttingProxy, Direction, Echo, Mosquitto, Paho, PahoEvent, PahoMessage, PahoOptions, PahoSubscription, RawBroker,
    RawClient,
};
use tokio::io::{AsyncBufReadExt, BufReader};

const SOON: Duration = Duration::from_secs(20);

/// A client of MQTT 5 at a broker.
async fn paho(broker: &Mosquitto) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(&broker.address())).await;
    paho
}

fn persistent(broker: &Mosquitto, client_id: &str) -> PahoOptions {
    PahoOptions::new(&broker.address()).client_id(client_id).clean(false).session_expiry(Duration::from_secs(3600))
}

fn texts(messages: &[PahoMessage]) -> Vec<&str> {
    messages.iter().map(PahoMessage::text).collect()
}

#[tokio::test]
async fn messages_carry_all_that_was_given_to_them() {
    let broker = Mosquitto::start().await;
    let client = paho(&broker).await;
    let subscription = PahoSubscription::new("there/#", 2).identifier(7).retain_as_published();
    assert_eq!(client.subscribe_with(subscription).await, 2);
    let every_byte: Vec<u8> = (0..=255).collect();
    let message = PahoMessage::new("there/and/back", every_byte.clone())
        .qos(2)
        .retain()
        .response_topic("back")
        .correlation_data(every_byte)
        .content_type("text/ü")
        .payload_format(0)
        .message_expiry(100)
        .user_property("a", "1")
        .user_property("a", "2");
    assert_eq!(client.publish(message.clone()).await, 0);
    let received = client.next_message(SOON).await;
    // What is left of the time, which may have ticked meanwhile.
    let left = received.message_expiry;
    assert!(left.is_some_and(|left| left > 50));
    let expected =
        PahoMessage { mid: received.mid, subscription_identifiers: vec![7], message_expiry: left, ..message };
    assert_eq!(received, expected);
    assert!(received.mid > 0);
    assert_eq!(client.unsubscribe("there/#").await, 0);
    // No matching subscribers.
    assert_eq!(client.publish(PahoMessage::new("nobody", "")).await, 0x10);
    client.disconnect().await;
    assert_eq!(client.try_publish(PahoMessage::new("x", "").qos(0)).await, None);
}

#[tokio::test]
async fn services_answer() {
    let broker = Mosquitto::options().nodelay().start().await;
    let (service, client) = (paho(&broker).await, paho(&broker).await);
    service.subscribe("ask", 1).await;
    service.echo(Echo::default().prefix("re: ").qos(2)).await;
    client.subscribe("answers", 2).await;
    client.subscribe("/1/me/POST/42", 1).await;
    let question = PahoMessage::new("ask", "who?").response_topic("answers").correlation_data([0, 255]);
    assert_eq!(client.publish(question.clone()).await, 0);
    let answer = client.next_message(SOON).await;
    assert_eq!((answer.text(), answer.qos, answer.correlation_data.as_deref()), ("re: who?", 2, Some(&[0, 255][..])));

    service.echo(Echo::default().prefix("later: ").delay(Duration::from_millis(50))).await;
    client.publish(question).await;
    assert_eq!(client.next_message(SOON).await.text(), "later: who?");

    assert_eq!(service.envelope_echo("code-a", 1).await, 1);
    client.publish(PahoMessage::new("/1/me/POST/42/configs/serverinfo/code-a/", "x")).await;
    let answer = client.next_message(SOON).await;
    assert_eq!((answer.topic.as_str(), answer.text()), ("/1/me/POST/42", "echo[code-a]:x"));
}

#[tokio::test]
async fn version_3_knows_no_reasons_and_no_properties() {
    let broker = Mosquitto::start().await;
    let client = Paho::start().await;
    client.connect(PahoOptions::new(&broker.address()).v3()).await;
    assert_eq!(client.subscribe("a", 1).await, 1);
    assert_eq!(client.publish(PahoMessage::new("nobody", "")).await, 0);
    assert_eq!(client.publish(PahoMessage::new("a", "b").qos(2).content_type("none")).await, 0);
    let message = client.next_message(SOON).await;
    assert_eq!((message.text(), message.qos, message.content_type.as_deref()), ("b", 1, None));
    assert_eq!(client.unsubscribe("a").await, 0);
}

#[tokio::test]
async fn passwords_and_tls() {
    let broker = Mosquitto::options().password("user", "secret").password("other", "").tls().start().await;
    let client = Paho::start().await;
    let options = PahoOptions::new(&broker.address());
    // Not authorised.
    assert_eq!(client.try_connect(options.clone()).await.unwrap().reason, 0x87);
    assert_eq!(client.try_connect(options.clone().password("user", "wrong").v3()).await.unwrap().reason, 5);
    client.connect(options.password("user", "secret")).await;
    let secure = PahoOptions::new(&broker.secure_address()).password("user", "secret");
    client.connect(secure.clone().tls(broker.tls())).await;
    client.subscribe("a", 1).await;
    client.publish(PahoMessage::new("a", "b")).await;
    assert_eq!(client.next_message(SOON).await.text(), "b");
    client.try_connect(secure).await.unwrap_err();
}

#[tokio::test]
async fn sessions_outlive_stop_and_kill() {
    let mut broker = Mosquitto::options().persistence().start().await;
    let address = broker.address();
    let (mut subscriber, sender) = (Paho::start().await, Paho::start().await);
    subscriber.connect(persistent(&broker, "subscriber")).await;
    subscriber.subscribe("a", 1).await;
    subscriber.kill();
    sender.connect(persistent(&broker, "sender")).await;
    assert_eq!(sender.publish(PahoMessage::new("a", "1")).await, 0);
    broker.stop().await;
    assert_eq!(sender.next_event(SOON).await, PahoEvent::Disconnected { reason: None });
    assert_eq!(sender.try_publish(PahoMessage::new("a", "2")).await, None);
    broker.restart().await;
    assert_eq!(broker.address(), address);
    // Paho still has the message.
    assert!(sender.reconnect().await.unwrap().session_present);
    assert_eq!(sender.publish(PahoMessage::new("a", "3")).await, 0);
    let pid = broker.pid();
    broker.save().await;
    broker.kill();
    assert_eq!(broker.pid(), None);
    assert_eq!(sender.next_event(SOON).await, PahoEvent::Disconnected { reason: None });
    broker.restart().await;
    assert_ne!(broker.pid(), pid);
    let subscriber = Paho::start().await;
    assert!(subscriber.connect(persistent(&broker, "subscriber")).await.session_present);
    let messages = subscriber.messages_until(|message| message.text() == "3", SOON).await;
    assert_eq!(texts(&messages), ["1", "2", "3"]);
}

#[tokio::test]
async fn paused_brokers_and_clients_are_silent() {
    let broker = Mosquitto::start().await;
    let (subscriber, sender) = (paho(&broker).await, paho(&broker).await);
    subscriber.subscribe("a", 1).await;
    broker.pause();
    let (acknowledged, ()) = tokio::join!(sender.publish(PahoMessage::new("a", "1")), async {
        assert_eq!(subscriber.try_next_message(Duration::from_millis(100)).await, None);
        broker.resume();
    });
    assert_eq!((acknowledged, subscriber.next_message(SOON).await.text()), (0, "1"));
    subscriber.pause();
    assert_eq!(sender.publish(PahoMessage::new("a", "2")).await, 0);
    assert_eq!(subscriber.try_next_message(Duration::from_millis(100)).await, None);
    subscriber.resume();
    assert_eq!(subscriber.next_message(SOON).await.text(), "2");
}

#[tokio::test]
async fn paho_reconnects_by_itself_if_told_to_and_its_will_is_done() {
    let mut broker = Mosquitto::options().persistence().start().await;
    let mut client = Paho::start().await;
    let will = PahoMessage::new("will", "gone").user_property("why", "killed");
    client.connect(persistent(&broker, "client").keepalive(Duration::from_secs(5)).will(will).reconnect()).await;
    client.subscribe("a", 1).await;
    broker.stop().await;
    assert_eq!(client.next_event(SOON).await, PahoEvent::Disconnected { reason: None });
    let (acknowledged, ()) = tokio::join!(client.publish(PahoMessage::new("a", "1")), broker.restart());
    assert_eq!(acknowledged, 0);
    let PahoEvent::Connected(connack) = client.next_event(SOON).await else { panic!("not connected") };
    assert!(connack.session_present);
    assert_eq!(client.next_message(SOON).await.text(), "1");

    // The will is published when the session ends, unless a delay is set: at once.
    let other = paho(&broker).await;
    other.subscribe("will", 1).await;
    client.kill();
    let will = other.next_message(SOON).await;
    assert_eq!((will.text(), &will.user_properties[..]), ("gone", &[("why".to_owned(), "killed".to_owned())][..]));
}

#[tokio::test]
async fn a_session_is_taken_over() {
    let broker = Mosquitto::start().await;
    let (first, second) = (Paho::start().await, Paho::start().await);
    first.connect(persistent(&broker, "same")).await;
    assert!(second.connect(persistent(&broker, "same")).await.session_present);
    // MQTT 5 would have the broker say 0x8e; Mosquitto 2.0.11 just closes.
    assert_eq!(first.next_event(SOON).await, PahoEvent::Disconnected { reason: None });
}

#[tokio::test]
async fn a_bridge_carries_messages_over() {
    let there = Mosquitto::start().await;
    let receiver = paho(&there).await;
    receiver.subscribe("a/#", 2).await;
    let here = Mosquitto::options().persistence().bridge_to(&there, "a/#", 1).start().await;
    let sender = paho(&here).await;
    let message = PahoMessage::new("a/b", "over").qos(2).user_property("kept", "yes");
    assert_eq!(sender.publish(message).await, 0);
    let message = receiver.next_message(SOON).await;
    assert_eq!((message.text(), message.qos, message.user_properties.len()), ("over", 1, 1));
}

#[tokio::test]
async fn a_bad_broker_does_as_it_is_told() {
    let broker = RawBroker::start().await;
    let client = Paho::start().await;
    let options = PahoOptions::new(&broker.address());
    let (connack, ()) = tokio::join!(client.try_connect(options.clone()), async {
        let mut connection = broker.accept().await;
        assert_eq!(connection.read_packet().await[0], 0x10);
        connection.reset();
    });
    connack.unwrap_err();
    // A refusal within the exchange of QoS 2, then a DISCONNECT with its reason.
    let play = async {
        let mut connection = broker.accept().await;
        let connect = connection.read_packet().await;
        connection.write(&RawBroker::CONNACK_5).await;
        let publish = connection.read_packet().await;
        assert_eq!(publish[0], 0x34);
        connection.write(&[0x50, 3, 0, 1, 0x97]).await;
        connection.write(&[0xe0, 1, 0x8b]).await;
        connection.read_until_closed(SOON).await;
        assert_eq!(connection.received(), [connect, publish].concat());
    };
    let (reason, ()) = tokio::join!(
        async {
            client.connect(options).await;
            client.publish(PahoMessage::new("a", "b").qos(2)).await
        },
        play
    );
    assert_eq!(reason, 0x97);
    assert_eq!(client.next_event(SOON).await, PahoEvent::Disconnected { reason: Some(0x8b) });
}

#[tokio::test]
async fn a_bad_client_does_as_it_is_told() {
    let broker = Mosquitto::start().await;
    let mut connection = RawClient::connect(&broker.address()).await;
    connection.write(&RawClient::connect_packet(5, "bad")).await;
    assert_eq!(connection.read_packet().await[0], 0x20);
    // A PUBLISH of QoS 3.
    connection.write(&[0x36, 6, 0, 1, b'a', 0, 1, 0]).await;
    // Malformed packet.
    assert_eq!(connection.read_packet().await, [0xe0, 1, 0x81]);
    assert!(connection.read_some(SOON).await.is_empty());
}

/// A client behind a proxy, with a subscription to `a` and a session that outlives its connections.
async fn behind(proxy: &CuttingProxy) -> Paho {
    let client = Paho::start().await;
    let options = PahoOptions::new(&proxy.address()).clean(false).session_expiry(Duration::from_secs(60)).reconnect();
    client.connect(options).await;
    client.subscribe("a", 2).await;
    client
}

#[tokio::test]
async fn the_proxy_cuts_blackholes_and_delays_mqtt() {
    let broker = Mosquitto::start().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let client = behind(&proxy).await;
    proxy.blackhole();
    let (acknowledged, ()) = tokio::join!(client.publish(PahoMessage::new("a", "1")), async {
        assert_eq!(client.try_next_message(Duration::from_millis(100)).await, None);
        proxy.mend();
    });
    assert_eq!((acknowledged, client.next_message(SOON).await.text()), (0, "1"));

    proxy.delay(Duration::from_millis(50));
    let start = Instant::now();
    client.publish(PahoMessage::new("a", "2")).await;
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(client.next_message(SOON).await.text(), "2");
    proxy.delay(Duration::ZERO);

    proxy.cut();
    assert_eq!(client.next_event(SOON).await, PahoEvent::Disconnected { reason: None });
    proxy.mend();
    assert!(matches!(client.next_event(SOON).await, PahoEvent::Connected(connack) if connack.session_present));
}

#[tokio::test]
async fn the_proxy_cuts_at_each_step_of_an_exchange() {
    let broker = Mosquitto::start().await;
    let proxy = CuttingProxy::start(broker.socket_address());
    let (client, receiver) = (behind(&proxy).await, paho(&broker).await);
    receiver.subscribe("b", 2).await;
    let (to_server, to_client) = (Direction::ToServer, Direction::ToClient);
    // Of QoS 1: PUBLISH, PUBACK. Of QoS 2: PUBLISH, PUBREC, PUBREL, PUBCOMP.
    let cuts = [
        (1, to_server, 3),
        (1, to_client, 4),
        (2, to_server, 3),
        (2, to_client, 5),
        (2, to_server, 6),
        (2, to_client, 7),
    ];
    for (qos, direction, packet_type) in cuts {
        let before = proxy.accepted();
        let cut = proxy.cut_at_mqtt(direction, packet_type);
        let text = format!("{qos} {packet_type}");
        let (reason, ()) = tokio::join!(client.publish(PahoMessage::new("b", text.clone()).qos(qos)), cut.happened());
        // Whoever repeats PUBREL may be told that the exchange is unknown, for it is over.
        assert!(reason == 0 || packet_type >= 6 && reason == 0x92, "{text}: {reason:#x}");
        assert_eq!(proxy.accepted(), before + 1);
        // Of QoS 1, the broker has it twice when the acknowledgement was lost; of QoS 2 never.
        let twice = (qos, packet_type) == (1, 4);
        for _ in 0..1 + usize::from(twice) {
            assert_eq!(receiver.next_message(SOON).await.text(), text);
        }
    }
    assert_eq!(receiver.try_next_message(Duration::from_millis(100)).await, None);
}

/// The kernel tells the group of a stopped process that it has lost its parent, which must not be the end of its watchdog. The
/// test process is killed here by standing in for it, as in the tests of ZooKeeper.
#[tokio::test]
async fn paused_processes_die_with_their_test_process() {
    let this = std::env::current_exe().unwrap();
    let mut child = tokio::process::Command::new(this)
        .args(["--ignored", "--exact", "stands_in_for_a_test_process", "--nocapture"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let pids: Vec<u32> = loop {
        let line = lines.next_line().await.unwrap().expect("a line with process ids");
        if let Some((_, pids)) = line.split_once("paused=") {
            break pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
        }
    };
    let alive = || {
        pids.iter().any(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !(stat.is_empty() || stat.contains(") Z "))
        })
    };
    assert!(pids.len() == 2 && alive());
    child.kill().await.unwrap();
    let start = Instant::now();
    while alive() {
        assert!(start.elapsed() < SOON, "one of {pids:?} outlives its test process");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
#[ignore = "run by paused_processes_die_with_their_test_process only"]
async fn stands_in_for_a_test_process() {
    let (broker, client) = (Mosquitto::start().await, Paho::start().await);
    broker.pause();
    client.pause();
    println!("paused={} {}", broker.pid().unwrap(), client.pid().unwrap());
    tokio::time::sleep(SOON).await;
}
